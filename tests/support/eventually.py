"""Waiting for a condition with a bound, in place of sleeps. `TEST_TIME_SCALE` stretches every bound on slow machines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def time_scale() -> float:
    """The factor by which every bound is stretched: `TEST_TIME_SCALE`, 1 when unset."""
    return float(os.environ.get("TEST_TIME_SCALE", "1"))


def eventually(predicate: Callable[[], T], within_s: float, every_s: float = 0.02) -> T:
    """Call `predicate` until it answers something true, and return that.

    An exception counts as "not yet". Raises AssertionError with the last answer or exception after `within_s` × scale.
    """
    until = time.monotonic() + within_s * time_scale()
    last: object = None
    while True:
        try:
            answer = predicate()
            if answer:
                return answer
            last = answer
        except Exception as error:  # what failed last is reported when time is up
            last = error
        if time.monotonic() >= until:
            cause = last if isinstance(last, Exception) else None
            raise AssertionError(f"not within {within_s} s; last: {last!r}") from cause
        time.sleep(every_s)
