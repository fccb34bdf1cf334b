"""The breaker: what opens it, what it lets through while half-open, what changes it from outside, and what it remembers."""

from __future__ import annotations

import threading
import time

import pytest

from discovery.errors import BreakerOpen
from discovery.resilience.breaker import Breaker, BreakerSettings, Permit, State, Who
from discovery.resilience.window import BUCKETS, MAX_CALLERS, Window
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


def trip(one: Breaker, clock: ManualClock) -> None:
    """Opened, and its time over."""
    fail(one, 10)
    assert one.state == "open"
    clock.sleep(5)


def history(one: Breaker) -> list[tuple[str, str]]:
    return [(each.state, each.who) for each in one.status().transitions]


# -- what opens it


@pytest.mark.parametrize(
    ("calls", "state"),
    [
        ("-" * 9, "closed"),
        ("-" * 10, "open"),
        ("+-" * 4 + "+", "closed"),
        ("+-" * 5, "open"),
        ("+++--" * 100, "closed"),
    ],
)
def test_share_of_enough_calls_opens_it(one: Breaker, calls: str, state: str) -> None:
    for call in calls:
        (succeed if call == "+" else fail)(one)
    assert one.state == state


def test_failures_older_than_the_window_are_forgotten(one: Breaker, clock: ManualClock) -> None:
    fail(one, 9)
    clock.sleep(11)
    fail(one)
    assert (one.status().state, one.status().calls) == ("closed", 1)


def test_ignored_outcome_counts_neither_way(one: Breaker, clock: ManualClock) -> None:
    for _ in range(50):
        one.enter().ignored()
    assert one.status().calls == 0
    trip(one, clock)
    for _ in range(3):
        one.enter().ignored()
    assert one.state == "half-open"


def test_one_callers_failures_alone_do_not_open_it_while_others_succeed(one: Breaker) -> None:
    for number in range(5):
        succeed(one, caller=f"10.0.0.{number}")
    fail(one, 200, caller="10.9.9.9")
    assert one.state == "closed"


def test_one_callers_failures_open_it_when_there_are_too_few_others(one: Breaker) -> None:
    succeed(one, 4, caller="10.0.0.1")
    fail(one, 6, caller="10.9.9.9")
    assert one.state == "open"


def test_failures_of_two_callers_open_it(one: Breaker) -> None:
    succeed(one, 2, caller="10.0.0.1")
    fail(one, 3, caller="10.0.0.2")
    assert one.state == "closed"
    fail(one, 5, caller="10.9.9.9")
    assert one.state == "open"


def test_failures_of_unknown_callers_open_it(one: Breaker) -> None:
    succeed(one, 5, caller="10.0.0.1")
    fail(one, 5)
    assert one.state == "open"


def test_callers_are_forgotten_with_the_window_and_bounded_within_it(clock: ManualClock) -> None:
    window = Window(10.0, clock)
    for number in range(MAX_CALLERS):
        window.add(1, 1, f"caller-{number}")
    for _ in range(5):
        window.add(1, 1, "one too many")
    assert window.without_the_worst() == (MAX_CALLERS + 4, MAX_CALLERS + 4)
    clock.sleep(10.0 + 10.0 / BUCKETS)
    assert window.without_the_worst() == (0, 0)


# -- open, and half-open


def test_open_lets_nothing_through_and_says_for_how_long(one: Breaker, clock: ManualClock) -> None:
    fail(one, 10)
    clock.sleep(2)
    for _ in range(7):
        with pytest.raises(BreakerOpen) as refused:
            one.enter()
        assert refused.value.retry_after_s == pytest.approx(3.0)
    assert one.status().refused == 7


def test_half_open_lets_only_the_trials_through(one: Breaker, clock: ManualClock) -> None:
    trip(one, clock)
    trials = [one.enter() for _ in range(3)]
    assert one.state == "half-open"
    with pytest.raises(BreakerOpen) as refused:
        one.enter()
    assert refused.value.retry_after_s == pytest.approx(5.0)
    trials[0].succeeded()
    assert one.state == "half-open"
    trials[1].succeeded()
    assert one.state == "closed"
    fail(one, 9)
    assert one.state == "closed", "with a clean window"


def test_failed_trial_opens_it_again_for_the_whole_time(one: Breaker, clock: ManualClock) -> None:
    trip(one, clock)
    fail(one)
    assert one.status().retry_after_s == pytest.approx(5.0)


def test_trials_that_never_end_do_not_block_it_for_ever(one: Breaker, clock: ManualClock) -> None:
    trip(one, clock)
    for _ in range(3):
        one.enter()
    clock.sleep(5)
    succeed(one, 2)
    assert one.state == "closed"


def test_late_failures_of_calls_begun_before_do_not_open_it_longer(one: Breaker, clock: ManualClock) -> None:
    late = [one.enter() for _ in range(5)]
    fail(one, 10)
    clock.sleep(4)
    for permit in late:
        permit.failed("timeout")
    assert one.status().retry_after_s == pytest.approx(1.0)


def test_late_success_does_not_close_what_is_open(one: Breaker, clock: ManualClock) -> None:
    trip(one, clock)
    slow = [one.enter(), one.enter()]
    fail(one)
    for permit in slow:
        permit.succeeded()
    assert one.state == "open"


def test_failed_trial_that_ends_after_closing_is_one_failure_and_no_more(
    one: Breaker, clock: ManualClock
) -> None:
    trip(one, clock)
    slow = one.enter()
    succeed(one, 2)
    assert one.state == "closed"
    slow.failed("late")
    assert (one.status().state, one.status().failures) == ("closed", 1)


def test_new_instance_is_worth_a_trial_before_the_time_is_over(one: Breaker) -> None:
    fail(one, 10)
    one.reconsider("an instance has come")
    assert one.status().transitions[-1].reason == "an instance has come"
    succeed(one, 2)
    assert one.state == "closed"


# -- side by side


def test_calls_run_side_by_side() -> None:
    one = Breaker("users", SETTINGS)

    def call() -> None:
        permit = one.enter()
        time.sleep(0.2)
        permit.succeeded()

    threads = [threading.Thread(target=call) for _ in range(8)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 1.2  # one after the other: 1.6 s
    assert one.status().calls == 8


def test_cap_on_trials_holds_when_many_arrive_at_once(one: Breaker, clock: ManualClock) -> None:
    trip(one, clock)
    entered: list[Permit] = []
    refused: list[BreakerOpen] = []
    gate = threading.Barrier(16)

    def arrive() -> None:
        gate.wait()
        try:
            entered.append(one.enter())
        except BreakerOpen as error:
            refused.append(error)

    threads = [threading.Thread(target=arrive) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (3, 13)


# -- from outside


def test_opened_from_outside_it_tries_again_when_that_time_is_over(one: Breaker, clock: ManualClock) -> None:
    assert one.change("open", 8.0, who="shared", reason="users-2 said so", ref="news-1")
    clock.sleep(7.9)
    with pytest.raises(BreakerOpen):
        one.enter()
    clock.sleep(0.2)
    fail(one)
    assert history(one) == [("open", "shared"), ("half-open", "local"), ("open", "local")]
    assert one.status().transitions[0].ref == "news-1"
    assert one.status().retry_after_s == pytest.approx(SETTINGS.open_s), "its own time again"


def test_opened_by_hand_no_outcome_of_earlier_calls_changes_it(one: Breaker, clock: ManualClock) -> None:
    trip(one, clock)
    trials = [one.enter() for _ in range(3)]
    one.change("open", 60.0, who="hand", reason="maintenance")
    assert one.status().held
    trials[0].failed("late")
    trials[1].succeeded()
    trials[2].succeeded()
    assert (one.status().state, one.status().held) == ("open", True)
    assert one.status().retry_after_s == pytest.approx(60.0)
    clock.sleep(60)
    succeed(one)
    assert not one.status().held


def test_reset_by_hand_forgets_what_was_counted(one: Breaker) -> None:
    fail(one, 9)
    assert one.change("closed", who="hand", reason="reset")
    assert one.status().calls == 0
    assert history(one) == [("closed", "hand")]
    fail(one, 9)
    assert one.state == "closed"


def test_half_opened_by_hand_lets_the_trials_through(one: Breaker) -> None:
    one.change("half-open", who="hand", reason="try")
    trials = [one.enter() for _ in range(3)]
    with pytest.raises(BreakerOpen):
        one.enter()
    trials[0].failed("still")
    assert one.state == "open"


@pytest.mark.parametrize("state", ["open", "half-open", "closed"])
def test_change_that_came_first_stops_one_decided_before_it(one: Breaker, state: State) -> None:
    seen = one.status().number
    fail(one, 10)
    assert not one.change(state, 99.0, who="shared", reason="", seen=seen)
    assert not one.prolong(99.0, seen=seen)
    assert one.state == "open"
    assert one.status().retry_after_s <= SETTINGS.open_s


def test_prolonging_never_shortens_and_concerns_the_open_only(one: Breaker) -> None:
    assert not one.prolong(9.0, seen=0)
    one.change("open", 8.0, who="shared", reason="")
    for for_s, left_s in ((3.0, 8.0), (9.0, 9.0)):
        assert one.prolong(for_s, seen=1)
        assert one.status().retry_after_s == pytest.approx(left_s)


@pytest.mark.parametrize("who", ["hand", "shared"])
def test_new_instance_changes_nothing_that_was_ordered_from_outside(one: Breaker, who: Who) -> None:
    one.reconsider("an instance has come")
    assert one.status().number == 0
    one.change("open", 5.0, who=who, reason="")
    one.reconsider("an instance has come")
    assert one.state == "open"


# -- what it remembers


def test_transitions_say_why_and_are_passed_on_once(clock: ManualClock) -> None:
    heard: list[tuple[str, str]] = []
    one = Breaker("users", SETTINGS, clock, lambda service, change: heard.append((service, change.state)))
    succeed(one, 1)
    fail(one, 9)
    clock.sleep(5)
    fail(one)
    clock.sleep(5)
    succeed(one, 2)
    kept = one.status().transitions
    assert [each.reason for each in kept] == [
        "9 of 10 calls failed, the last: status 503",
        "its time is over, trying",
        "a trial failed: status 503",
        "its time is over, trying",
        "its trials succeeded",
    ]
    assert [each.number for each in kept] == [1, 2, 3, 4, 5]
    assert kept[0].at == pytest.approx(clock.now - 10)
    assert heard == [("users", state) for state in ("open", "half-open", "open", "half-open", "closed")]


def test_only_the_last_transitions_are_kept_and_reasons_are_cut(one: Breaker) -> None:
    for _ in range(30):
        one.change("open", 1.0, who="hand", reason="x" * 1000)
    kept = one.status().transitions
    assert (len(kept), kept[-1].number, len(kept[-1].reason)) == (20, 30, 200)
