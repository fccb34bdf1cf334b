"""The guard alone, with a carrier that is no HTTP: what stands around a call does not depend on how it is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from discovery import (
    BreakerOpen,
    BreakerSettings,
    ClientSettings,
    ConnectFailed,
    Instance,
    Observer,
    StaticView,
)
from discovery.calls.guard import Attempt, Call, Guard
from discovery.resilience.patience import Patience
from tests.support.clock import ManualClock

ONE, TWO = (Instance("users", f"users-{number}", "node-1", "127.0.0.1", 7000 + number) for number in (1, 2))


@dataclass
class Reply:
    status: int = 200
    attempts: int = 1
    closed: bool = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def guard(clock: ManualClock) -> Guard:
    settings = ClientSettings(breaker=BreakerSettings(min_calls=2))
    return Guard(StaticView([ONE, TWO]), settings, clock, Observer())


def call(clock: ManualClock, deadline_s: float = 5.0, *, twice: bool = True) -> Call:
    now = clock.monotonic()
    patience = Patience(5.0, 0.0, 0.5, shares=True)
    return Call("users", "GetUser", now, now + deadline_s, patience, twice, balance="first")


def refused_by(instance: Instance) -> Callable[[Attempt], Reply]:
    def send(attempt: Attempt) -> Reply:
        if attempt.instance is instance:
            raise ConnectFailed("users", "refused", instance_id=instance.id)
        return Reply()

    return send


def test_refused_attempt_goes_to_another_instance_and_ejects_the_first(
    guard: Guard, clock: ManualClock
) -> None:
    assert guard.run(call(clock, twice=False), refused_by(ONE)).attempts == 2
    assert guard.run(call(clock, twice=False), refused_by(ONE)).attempts == 1


def test_answer_given_up_for_another_attempt_is_closed(guard: Guard, clock: ManualClock) -> None:
    replies = [Reply(502), Reply(200)]
    given = list(replies)
    assert guard.run(call(clock), lambda attempt: given.pop(0)) is replies[1]
    assert replies[0].closed


def test_failed_statuses_open_the_breaker_and_nothing_is_sent_then(guard: Guard, clock: ManualClock) -> None:
    for _ in range(2):
        assert guard.run(call(clock), lambda attempt: Reply(500)).status == 500
    with pytest.raises(BreakerOpen):
        guard.run(call(clock), lambda attempt: pytest.fail("it was sent"))


def test_attempt_that_may_be_followed_by_another_gets_half_of_the_time(
    guard: Guard, clock: ManualClock
) -> None:
    given: list[float] = []

    def send(attempt: Attempt) -> Reply:
        given.append(attempt.timeout_s)
        return Reply()

    guard.run(call(clock, 4.0), send)
    guard.run(call(clock, 4.0, twice=False), send)
    assert given == [2.0, 4.0]
