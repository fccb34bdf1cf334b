"""The breaker: what opens it, what it lets through while half-open, and that it holds no lock during a call."""

from __future__ import annotations

import threading
import time

import pytest

from discovery.errors import BreakerOpen
from discovery.resilience.breaker import Breaker, BreakerSettings, Permit
from tests.support.clock import ManualClock

SETTINGS = BreakerSettings(window_s=10.0, min_calls=10, rate=0.5, open_s=5.0, trials=3, successes=2)


def breaker(clock: ManualClock, **more: object) -> Breaker:
    return Breaker("users", SETTINGS, clock, **more)  # type: ignore[arg-type]


def fail(one: Breaker, times: int = 1) -> None:
    for _ in range(times):
        one.enter().failed("status 503")


def succeed(one: Breaker, times: int = 1) -> None:
    for _ in range(times):
        one.enter().succeeded()


def opened(clock: ManualClock, **more: object) -> Breaker:
    one = breaker(clock, **more)
    fail(one, 10)
    assert one.snapshot().state == "open"
    return one


def test_fewer_than_the_minimum_of_calls_never_open_it() -> None:
    one = breaker(ManualClock())
    fail(one, 9)
    assert one.snapshot().state == "closed"
    fail(one)
    assert one.snapshot().state == "open"


def test_rate_opens_it_though_every_second_call_succeeds() -> None:
    one = breaker(ManualClock())
    for _ in range(4):
        succeed(one)
        fail(one)
    assert one.snapshot().state == "closed"
    succeed(one)
    fail(one)
    assert one.snapshot().state == "open"


def test_rate_below_the_bound_never_opens_it() -> None:
    one = breaker(ManualClock())
    for _ in range(100):
        succeed(one, 3)
        fail(one, 2)
    assert one.snapshot().state == "closed"


def test_failures_older_than_the_window_are_forgotten() -> None:
    clock = ManualClock()
    one = breaker(clock)
    fail(one, 9)
    clock.sleep(11)
    fail(one)
    assert (one.snapshot().state, one.snapshot().calls) == ("closed", 1)


def test_open_lets_nothing_through_and_says_for_how_long() -> None:
    clock = ManualClock()
    one = opened(clock)
    clock.sleep(2)
    with pytest.raises(BreakerOpen) as refused:
        one.enter()
    assert refused.value.retry_after_s == pytest.approx(3.0)


def test_half_open_lets_only_the_trials_through() -> None:
    clock = ManualClock()
    one = opened(clock)
    clock.sleep(5)
    trials = [one.enter() for _ in range(3)]
    assert one.snapshot().state == "half-open"
    with pytest.raises(BreakerOpen) as refused:
        one.enter()
    assert refused.value.retry_after_s == pytest.approx(5.0)
    trials[0].succeeded()
    assert one.snapshot().state == "half-open"
    trials[1].succeeded()
    assert one.snapshot().state == "closed"


def test_failed_trial_opens_it_again_for_the_whole_time() -> None:
    clock = ManualClock()
    one = opened(clock)
    clock.sleep(5)
    fail(one)
    assert one.snapshot().retry_after_s == pytest.approx(5.0)


def test_trials_that_never_end_do_not_block_it_for_ever() -> None:
    clock = ManualClock()
    one = opened(clock)
    clock.sleep(5)
    lost = [one.enter() for _ in range(3)]
    clock.sleep(5)
    succeed(one, 2)
    assert one.snapshot().state == "closed"
    assert lost


def test_late_failures_of_calls_begun_before_do_not_open_it_longer() -> None:
    clock = ManualClock()
    one = breaker(clock)
    late = [one.enter() for _ in range(5)]
    fail(one, 10)
    clock.sleep(4)
    for permit in late:
        permit.failed("timeout")
    assert one.snapshot().retry_after_s == pytest.approx(1.0)


def test_late_success_does_not_close_what_is_open() -> None:
    clock = ManualClock()
    one = opened(clock)
    clock.sleep(5)
    slow = [one.enter(), one.enter()]
    fail(one)
    for permit in slow:
        permit.succeeded()
    assert one.snapshot().state == "open"


def test_closing_starts_with_a_clean_window() -> None:
    clock = ManualClock()
    one = opened(clock)
    clock.sleep(5)
    succeed(one, 2)
    fail(one, 9)
    assert one.snapshot().state == "closed"


def test_ignored_outcome_counts_neither_way() -> None:
    clock = ManualClock()
    one = breaker(clock)
    for _ in range(50):
        one.enter().ignored()
    assert one.snapshot().calls == 0
    fail(one, 10)
    clock.sleep(5)
    for _ in range(3):
        one.enter().ignored()
    assert one.snapshot().state == "half-open"


def test_second_report_on_a_permit_does_nothing() -> None:
    one = breaker(ManualClock())
    permit = one.enter()
    permit.succeeded()
    permit.failed("later")
    assert (one.snapshot().calls, one.snapshot().failures) == (1, 0)


def test_change_of_state_is_told_once() -> None:
    clock = ManualClock()
    told: list[tuple[str, str]] = []
    one = opened(clock, on_change=lambda service, change: told.append((service, change.state)))
    clock.sleep(5)
    succeed(one, 2)
    assert told == [("users", "open"), ("users", "half-open"), ("users", "closed")]


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
    assert one.snapshot().calls == 8


def test_cap_on_trials_holds_when_many_arrive_at_once() -> None:
    clock = ManualClock()
    one = opened(clock)
    clock.sleep(5)
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


def test_permit_may_be_reported_from_another_thread() -> None:
    one = breaker(ManualClock())
    permit = one.enter()
    thread = threading.Thread(target=permit.failed, args=("late",))
    thread.start()
    thread.join()
    assert one.snapshot().failures == 1
