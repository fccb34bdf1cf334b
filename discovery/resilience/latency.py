"""How long a service's good answers take: what a hedge waits before its second attempt."""

from __future__ import annotations

from collections import deque

SAMPLES = 128
# Below this a p95 is one answer's luck.
LEAST = 20


class Latencies:
    """The durations of the last successful attempts, in seconds. Thread-safe; memory is bounded by `SAMPLES`."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=SAMPLES)
        self.add = self._last.append

    def quantile(self, quantile: float) -> float | None:
        """The duration that `quantile` (0 to 1) of the attempts stayed within; None while fewer than `LEAST` are known."""
        values = sorted(self._last.copy())
        if len(values) < LEAST:
            return None
        return values[min(len(values) - 1, int(quantile * len(values)))]
