"""Two counters over a sliding window of time, in buckets: for the breaker's failure rate and the retry budget."""

from __future__ import annotations

import threading

from discovery.clock import SYSTEM_CLOCK, Clock

BUCKETS = 10


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
            self._counts[passed % BUCKETS] = (0, 0)
        if number > self._newest + BUCKETS:
            self._counts = [(0, 0)] * BUCKETS
        self._newest = max(self._newest, number)

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
        """Count one of the second kind if there are then at most `ratio` × the first kind, or `floor`; tells whether it did."""
        with self._lock:
            first, second = self._totals()
            if second + 1 > max(floor, ratio * first):
                return False
            self._add(0, 1)
            return True

    def clear(self) -> None:
        with self._lock:
            self._counts = [(0, 0)] * BUCKETS
