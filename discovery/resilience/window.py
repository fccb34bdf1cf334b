"""Counts over a sliding window of time: for the breaker's failure rate and the retry budget."""

from __future__ import annotations

import threading
from collections import Counter, deque

from discovery.clock import SYSTEM_CLOCK, Clock

BUCKETS = 10
# Callers counted apart within a bucket; those beyond are counted together, as unknown.
MAX_CALLERS = 64

Counts = Counter[str]


class Window:
    """Counts of two kinds over the last `window_s` seconds, exact to a tenth of it, for each caller (empty: unknown). Thread-safe."""

    def __init__(self, window_s: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._bucket_s = window_s / BUCKETS
        self._clock = clock
        self._lock = threading.Lock()
        # The number of its time, and what was counted in it of each kind, by caller; the newest is last.
        self._buckets: deque[tuple[int, Counts, Counts]] = deque(maxlen=BUCKETS)

    def add(self, first: int = 0, second: int = 0, caller: str = "") -> None:
        with self._lock:
            number = self._number()
            if not self._buckets or self._buckets[-1][0] < number:
                self._buckets.append((number, Counter(), Counter()))
            _, firsts, seconds = self._buckets[-1]
            if caller not in firsts and len(firsts) >= MAX_CALLERS:
                caller = ""
            firsts[caller] += first
            seconds[caller] += second

    def totals(self) -> tuple[int, int]:
        firsts, seconds = self._by_caller()
        return firsts.total(), seconds.total()

    def without_the_worst(self) -> tuple[int, int]:
        """Both counts of all but the known caller that has most of the second kind."""
        firsts, seconds = self._by_caller()
        worst = max(filter(None, seconds), key=seconds.__getitem__, default=None)
        if worst is not None:
            del firsts[worst], seconds[worst]
        return firsts.total(), seconds.total()

    def clear(self) -> None:
        with self._lock:
            self._buckets.clear()

    def _number(self) -> int:
        return int(self._clock.monotonic() / self._bucket_s)

    def _by_caller(self) -> tuple[Counts, Counts]:
        firsts: Counts = Counter()
        seconds: Counts = Counter()
        with self._lock:
            gone = self._number() - BUCKETS
            for number, first, second in self._buckets:
                if number > gone:
                    firsts.update(first)
                    seconds.update(second)
        return firsts, seconds
