"""The circuit before a Redis that may be away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from services.kit.redis_client import OPEN_S, Away, Circuit
from tests.support.clock import ManualClock

GONE = RedisConnectionError("Connection refused")


def fail(error: Exception = GONE) -> Callable[[Redis], None]:
    def action(_: Redis) -> None:
        raise error

    return action


def send(_: Redis) -> str:
    return "done"


@pytest.mark.parametrize(
    ("error", "unwell"),
    [
        (RedisTimeout("Timeout reading from socket"), True),
        (GONE, True),
        (ReadOnlyError("You can't write against a read only replica."), True),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), True),
        (ResponseError("MISCONF Errors writing to the AOF file"), True),
        (OSError("broken pipe"), True),
        (Away("of no use for this"), True),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), False),
        (RedisConnectionError("No connection available."), False),
        (ResponseError("WRONGTYPE Operation against a key"), False),
    ],
)
def test_opens_for_what_is_redis_own_and_then_sends_nothing(error: Exception, unwell: bool) -> None:
    clock, calls = ManualClock(), []

    def action(_: Redis) -> None:
        calls.append(1)
        raise error

    circuit = Circuit(Redis(), "test", monotonic=clock.monotonic)
    for _ in range(3):
        with pytest.raises(Away):
            circuit.run(action)
    assert (len(calls), circuit.closed) == ((1, False) if unwell else (3, True))


def test_one_tries_after_a_second_and_closes_it_by_succeeding() -> None:
    clock = ManualClock()
    circuit = Circuit(Redis(), "test", monotonic=clock.monotonic)
    circuit.open("gone")
    clock.sleep(OPEN_S)

    def trial(_: Redis) -> None:
        with pytest.raises(Away):
            circuit.run(send)

    circuit.run(trial)
    assert circuit.run(send) == "done"


def test_failed_trial_opens_it_again() -> None:
    clock = ManualClock()
    circuit = Circuit(Redis(), "test", failures=2, monotonic=clock.monotonic)
    for _ in range(2):
        assert circuit.closed
        with pytest.raises(Away):
            circuit.run(fail())
    clock.sleep(OPEN_S)
    with pytest.raises(Away):
        circuit.run(fail())
    assert not circuit.closed


def test_tended_one_is_closed_by_close_alone() -> None:
    clock = ManualClock()
    circuit = Circuit(Redis(), "test", tended=True, monotonic=clock.monotonic)
    circuit.open("changes are not noted")
    clock.sleep(2 * OPEN_S)
    with pytest.raises(Away):
        circuit.run(send)
    assert circuit.attempt(send) == "done"
    assert not circuit.closed
    circuit.close()
    assert circuit.run(send) == "done"


def test_success_between_failures_starts_the_count_again() -> None:
    circuit = Circuit(Redis(), "test", failures=2)
    for _ in range(3):
        with pytest.raises(Away):
            circuit.run(fail())
        circuit.run(send)
    assert circuit.closed


def test_success_does_not_close_what_was_opened_while_it_ran() -> None:
    circuit = Circuit(Redis(), "test", failures=2)
    with pytest.raises(Away):
        circuit.run(fail())
    circuit.run(lambda _: circuit.open("changes are not noted"))
    assert not circuit.closed


def test_attempt_is_sent_while_open_and_leaves_it_open() -> None:
    circuit = Circuit(Redis(), "test")
    circuit.open("gone")
    assert circuit.attempt(send) == "done"
    assert not circuit.closed
    circuit.close()
    assert circuit.closed


def test_without_redis_everything_is_away() -> None:
    circuit = Circuit(None, "test")
    assert not circuit.exists
    for ask in (circuit.run, circuit.attempt):
        with pytest.raises(Away):
            ask(send)
