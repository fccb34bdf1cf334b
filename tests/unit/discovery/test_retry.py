"""The rule of what may be retried, the budget, and the window both rest on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.errors import (
    BreakerOpen,
    ConnectFailed,
    DeadlineExceeded,
    NoInstance,
    ResponseLost,
    ResponseTimeout,
)
from discovery.resilience.retry import RetryBudget, RetrySettings, backoff_s, may_retry, may_run_twice
from discovery.resilience.window import Window
from tests.support.clock import ManualClock

LOST = ResponseLost("users")
TIMEOUT = ResponseTimeout("users")
REFUSED = ConnectFailed("users")


@pytest.mark.parametrize(
    ("outcome", "once", "twice"),
    [
        (REFUSED, True, True),
        (LOST, False, True),
        (TIMEOUT, False, True),
        (502, False, True),
        (503, False, False),
        (504, False, False),
        (500, False, False),
        (501, False, False),
        (429, False, False),
        (404, False, False),
        (200, False, False),
        (NoInstance("users"), False, False),
        (BreakerOpen("users", retry_after_s=1), False, False),
        (DeadlineExceeded("users", sent=True), False, False),
    ],
)
def test_what_may_have_run_is_retried_only_if_it_may_run_twice(
    outcome: Exception | int, once: bool, twice: bool
) -> None:
    assert may_retry(outcome, twice=False, replayable=True) is once
    assert may_retry(outcome, twice=True, replayable=True) is twice
    assert not may_retry(outcome, twice=True, replayable=False)


@pytest.mark.parametrize("method", ["GET", "get", "HEAD", "OPTIONS"])
def test_methods_that_change_nothing_may_run_twice(method: str) -> None:
    assert may_run_twice(method, {})


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "CONNECT", "FOO"])
def test_other_methods_need_an_idempotency_key(method: str) -> None:
    assert not may_run_twice(method, {"X-Idempotency": "a"})
    assert may_run_twice(method, {"iDempotency-Key": "a"})


def test_backoff_is_full_jitter_under_a_bound_that_doubles() -> None:
    clock = ManualClock(chance=1.0)
    settings = RetrySettings(backoff_base_s=0.02, backoff_max_s=0.25)
    assert [backoff_s(settings, retry, clock) for retry in (1, 2, 3, 4, 100)] == [
        0.04,
        0.08,
        0.16,
        0.25,
        0.25,
    ]
    clock.chance = 0.0
    assert backoff_s(settings, 3, clock) == 0.0


def test_budget_is_a_share_of_the_calls() -> None:
    budget = RetryBudget(RetrySettings(ratio=0.2, floor=3), ManualClock())
    for _ in range(100):
        budget.called()
    assert sum(budget.spend() for _ in range(100)) == 20


def test_budget_of_few_calls_is_the_floor_and_comes_back_with_time() -> None:
    clock = ManualClock()
    budget = RetryBudget(RetrySettings(ratio=0.2, floor=3, window_s=10), clock)
    budget.called()
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]
    clock.sleep(11)
    assert budget.spend()


def test_what_was_borrowed_is_paid_by_later_retries() -> None:
    clock = ManualClock()
    budget = RetryBudget(RetrySettings(ratio=0.2, floor=3, window_s=10), clock)
    for _ in range(5):
        budget.borrow()
    assert budget.overdrawn()
    for _ in range(25):
        budget.called()
    assert not budget.overdrawn()
    assert not budget.spend(), "the five that fit were made"
    clock.sleep(11)
    assert budget.spend()


@given(
    st.lists(st.tuples(st.floats(0, 30, allow_nan=False), st.integers(0, 3), st.integers(0, 3)), max_size=40)
)
def test_window_holds_what_is_young_and_nothing_old(steps: list[tuple[float, int, int]]) -> None:
    clock = ManualClock()
    window = Window(10.0, clock)
    log: list[tuple[float, int, int]] = []
    for pause_s, first, second in steps:
        clock.sleep(pause_s)
        window.add(first, second)
        log.append((clock.now, first, second))
        totals = window.totals()
        for kind in (1, 2):
            surely = sum(entry[kind] for entry in log if clock.now - entry[0] <= 8.99)  # type: ignore[misc]
            perhaps = sum(entry[kind] for entry in log if clock.now - entry[0] <= 10.01)  # type: ignore[misc]
            assert surely <= totals[kind - 1] <= perhaps
