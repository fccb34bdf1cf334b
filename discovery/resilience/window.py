"""Counts over a sliding window of time, in buckets: for the breaker's failure rate and the retry budget."""

from __future__ import annotations

import threading

from discovery.clock import SYSTEM_CLOCK, Clock

BUCKETS = 10
# Callers counted apart within a bucket; those beyond are counted together, as unknown.
MAX_CALLERS = 64


class Window:
    """Counts of two kinds over the last `window_s` seconds, exact to a tenth of it. Thread-safe."""

    def __init__(self, window_s: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._bucket_s = window_s / BUCKETS
        self._clock = clock
        self._lock = threading.Lock()
        self._counts = [(0, 0)] * BUCKETS
        self._newest = self._number()

    def _number(self) -> int:
        return int(self._clock.monotonic() / self._bucket_s)

    def _roll(self) -> None:
        number = self._number()
        for passed in range(self._newest + 1, min(number, self._newest + BUCKETS) + 1):
            self._empty(passed % BUCKETS)
        if number > self._newest + BUCKETS:
            self._empty_all()
        self._newest = max(self._newest, number)

    def _empty(self, at: int) -> None:
        self._counts[at] = (0, 0)

    def _empty_all(self) -> None:
        for at in range(BUCKETS):
            self._empty(at)

    def add(self, first: int = 0, second: int = 0) -> None:
        with self._lock:
            self._add(first, second)

    def _add(self, first: int, second: int) -> None:
        self._roll()
        at = self._newest % BUCKETS
        old = self._counts[at]
        self._counts[at] = (old[0] + first, old[1] + second)

    def totals(self) -> tuple[int, int]:
        with self._lock:
            return self._totals()

    def _totals(self) -> tuple[int, int]:
        self._roll()
        return sum(count[0] for count in self._counts), sum(count[1] for count in self._counts)

    def add_second_below(self, ratio: float, floor: int) -> bool:
        """Count one of the second kind if there are then at most `ratio` × the first kind, or `floor`; returns whether it did."""
        with self._lock:
            if not self._fits(1, ratio, floor):
                return False
            self._add(0, 1)
            return True

    def second_fits(self, ratio: float, floor: int) -> bool:
        """Whether there are at most `ratio` × the first kind of the second kind, or `floor`."""
        with self._lock:
            return self._fits(0, ratio, floor)

    def _fits(self, more: int, ratio: float, floor: int) -> bool:
        first, second = self._totals()
        return second + more <= max(floor, ratio * first)

    def clear(self) -> None:
        with self._lock:
            self._empty_all()


class CallWindow(Window):
    """Calls and failures, and whose they were. Callers' names are held for `window_s`, `MAX_CALLERS` in a bucket."""

    def __init__(self, window_s: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._callers: list[dict[str, tuple[int, int]]] = [{} for _ in range(BUCKETS)]
        super().__init__(window_s, clock)

    def _empty(self, at: int) -> None:
        super()._empty(at)
        self._callers[at] = {}

    def count(self, caller: str, *, failed: bool) -> None:
        """Count a call; `caller` is empty where it is not known."""
        with self._lock:
            self._add(1, int(failed))
            callers = self._callers[self._newest % BUCKETS]
            if caller and (caller in callers or len(callers) < MAX_CALLERS):
                calls, failures = callers.get(caller, (0, 0))
                callers[caller] = (calls + 1, failures + int(failed))

    def without_the_worst(self) -> tuple[int, int]:
        """Calls and failures of all but the known caller with the most failures."""
        with self._lock:
            calls, failures = self._totals()
            each: dict[str, tuple[int, int]] = {}
            for callers in self._callers:
                for caller, (more, failed) in callers.items():
                    had = each.get(caller, (0, 0))
                    each[caller] = (had[0] + more, had[1] + failed)
        worst = max(each.values(), key=lambda counts: counts[1], default=(0, 0))
        return calls - worst[0], failures - worst[1]
