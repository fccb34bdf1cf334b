"""The breaker told from outside: by another process, by an operator; what it remembers, and whose failures it believes."""

from __future__ import annotations

import pytest

from discovery.errors import BreakerOpen
from discovery.resilience.breaker import Breaker, BreakerSettings, Who
from discovery.resilience.window import BUCKETS, MAX_CALLERS, CallWindow
from tests.support.clock import ManualClock

SETTINGS = BreakerSettings(window_s=10.0, min_calls=10, rate=0.5, open_s=5.0, trials=3, successes=2)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def one(clock: ManualClock) -> Breaker:
    return Breaker("users", SETTINGS, clock)


def fail(one: Breaker, times: int = 1, caller: str = "") -> None:
    for _ in range(times):
        one.enter(caller).failed("status 503")


def succeed(one: Breaker, times: int = 1, caller: str = "") -> None:
    for _ in range(times):
        one.enter(caller).succeeded()


def history(one: Breaker) -> list[tuple[str, str]]:
    return [(each.state, each.who) for each in one.snapshot().transitions]


# -- from outside


def test_opened_from_outside_it_tries_again_when_that_time_is_over(one: Breaker, clock: ManualClock) -> None:
    assert one.open(8.0, who="shared", reason="users-2 said so", ref="news-1")
    with pytest.raises(BreakerOpen) as refused:
        one.enter()
    assert refused.value.retry_after_s == pytest.approx(8.0)
    clock.sleep(7.9)
    with pytest.raises(BreakerOpen):
        one.enter()
    clock.sleep(0.2)
    succeed(one, 2)
    assert history(one) == [("open", "shared"), ("half-open", "local"), ("closed", "local")]
    assert one.snapshot().transitions[0].ref == "news-1"


def test_time_of_an_opening_from_outside_does_not_stick(one: Breaker, clock: ManualClock) -> None:
    one.open(60.0, who="shared", reason="")
    clock.sleep(60)
    fail(one)
    assert one.snapshot().retry_after_s == pytest.approx(SETTINGS.open_s)


def test_opened_by_hand_no_outcome_of_earlier_calls_changes_it(one: Breaker, clock: ManualClock) -> None:
    fail(one, 10)
    clock.sleep(5)
    trials = [one.enter() for _ in range(3)]
    one.open(60.0, who="hand", reason="maintenance")
    assert one.snapshot().held
    trials[0].failed("late")
    trials[1].succeeded()
    trials[2].succeeded()
    assert (one.snapshot().state, one.snapshot().held) == ("open", True)
    assert one.snapshot().retry_after_s == pytest.approx(60.0)
    clock.sleep(60)
    succeed(one)
    assert not one.snapshot().held


def test_failed_trial_that_ends_after_closing_is_one_failure_and_no_more(
    one: Breaker, clock: ManualClock
) -> None:
    fail(one, 10)
    clock.sleep(5)
    slow = one.enter()
    succeed(one, 2)
    assert one.snapshot().state == "closed"
    slow.failed("late")
    assert (one.snapshot().state, one.snapshot().failures) == ("closed", 1)


def test_reset_by_hand_forgets_what_was_counted(one: Breaker) -> None:
    fail(one, 9)
    assert one.close(who="hand", reason="reset")
    assert one.snapshot().calls == 0
    assert history(one) == [("closed", "hand")]
    fail(one, 9)
    assert one.snapshot().state == "closed"


def test_half_opened_by_hand_lets_the_trials_through(one: Breaker) -> None:
    one.half_open(who="hand", reason="try")
    trials = [one.enter() for _ in range(3)]
    with pytest.raises(BreakerOpen):
        one.enter()
    trials[0].failed("still")
    assert one.snapshot().state == "open"


def test_change_that_came_first_stops_one_decided_before_it(one: Breaker) -> None:
    seen = one.snapshot().number
    fail(one, 10)
    assert not one.close(who="shared", reason="", seen=seen)
    assert not one.half_open(who="shared", reason="", seen=seen)
    assert not one.open(1.0, who="shared", reason="", seen=seen)
    assert not one.prolong(99.0, seen=seen)
    assert one.snapshot().state == "open"
    assert one.snapshot().retry_after_s <= SETTINGS.open_s


def test_prolonging_never_shortens_and_concerns_the_open_only(one: Breaker) -> None:
    assert not one.prolong(9.0)
    one.open(8.0, who="shared", reason="")
    assert one.prolong(3.0)
    assert one.snapshot().retry_after_s == pytest.approx(8.0)
    assert one.prolong(9.0)
    assert one.snapshot().retry_after_s == pytest.approx(9.0)


def test_new_instance_is_worth_a_trial_before_the_time_is_over(one: Breaker) -> None:
    fail(one, 10)
    one.reconsider("an instance has come")
    assert one.snapshot().transitions[-1].reason == "an instance has come"
    succeed(one, 2)
    assert one.snapshot().state == "closed"


@pytest.mark.parametrize("who", ["hand", "shared"])
def test_new_instance_changes_nothing_where_somebody_else_has_opened_it(one: Breaker, who: Who) -> None:
    one.reconsider("an instance has come")
    assert one.snapshot().number == 0
    one.open(5.0, who=who, reason="")
    one.reconsider("an instance has come")
    assert one.snapshot().state == "open"


# -- what it remembers


def test_transitions_say_why(one: Breaker, clock: ManualClock) -> None:
    succeed(one, 1)
    fail(one, 9)
    clock.sleep(5)
    fail(one)
    clock.sleep(5)
    succeed(one, 2)
    told = one.snapshot().transitions
    assert [each.reason for each in told] == [
        "9 of 10 calls failed, the last: status 503",
        "its time is over, trying",
        "a trial failed: status 503",
        "its time is over, trying",
        "its trials succeeded",
    ]
    assert [each.number for each in told] == [1, 2, 3, 4, 5]
    assert told[0].at == pytest.approx(clock.now - 10)


def test_only_the_last_transitions_are_kept_and_reasons_are_cut(one: Breaker) -> None:
    for _ in range(30):
        one.open(1.0, who="hand", reason="x" * 1000)
    told = one.snapshot().transitions
    assert (len(told), told[-1].number, len(told[-1].reason)) == (20, 30, 200)


def test_refused_calls_are_counted(one: Breaker) -> None:
    fail(one, 10)
    for _ in range(7):
        with pytest.raises(BreakerOpen):
            one.enter()
    assert one.snapshot().refused == 7


# -- whose failures


def test_one_callers_failures_alone_do_not_open_it_while_others_succeed(one: Breaker) -> None:
    for number in range(5):
        succeed(one, caller=f"10.0.0.{number}")
    fail(one, 200, caller="10.9.9.9")
    assert one.snapshot().state == "closed"


def test_one_callers_failures_open_it_when_nobody_else_is_there_to_say_otherwise(one: Breaker) -> None:
    succeed(one, 4, caller="10.0.0.1")
    fail(one, 6, caller="10.9.9.9")
    assert one.snapshot().state == "open"


def test_failures_of_two_callers_open_it(one: Breaker) -> None:
    succeed(one, 2, caller="10.0.0.1")
    fail(one, 3, caller="10.0.0.2")
    assert one.snapshot().state == "closed"
    fail(one, 5, caller="10.9.9.9")
    assert one.snapshot().state == "open"


def test_failures_of_nobody_in_particular_open_it(one: Breaker) -> None:
    succeed(one, 5, caller="10.0.0.1")
    fail(one, 5)
    assert one.snapshot().state == "open"


def test_callers_are_forgotten_with_the_window_and_bounded_within_it(clock: ManualClock) -> None:
    window = CallWindow(10.0, clock)
    for number in range(MAX_CALLERS):
        window.count(f"caller-{number}", failed=True)
    for _ in range(5):
        window.count("one too many", failed=True)
    assert window.without_the_worst() == (MAX_CALLERS + 4, MAX_CALLERS + 4)
    clock.sleep(10.0 + 10.0 / BUCKETS)
    assert window.without_the_worst() == (0, 0)
