"""How many requests one upstream may have at once, found from how long they take.

The limit is cut by the gradient of latency against its base, and grows by its square root while there is none.
Ref: Netflix concurrency-limits, Gradient2Limit. Three things differ, the first two because a base that follows the average of a
loaded upstream takes its queue for normal in the end, and the limit then grows without end:

- the base is only raised by what was measured with few requests at once. Where there never are few, the limit is lowered
  for one window to see whether latency follows (it was a queue) or not (the upstream is that slow now).
  Ref: Envoy's adaptive concurrency filter (minRTT); BBR's ProbeRTT.
- a queue is only worth a refusal when requests stand in it for `queue_s`: doubling 2 ms is nothing.
- what has been answered shows a queue only when it is long already. A request that enters now will wait for those before it,
  at the pace at which they are answered; the limit is cut by that, where it is more. Ref: Little's law.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from discovery.clock import SYSTEM_CLOCK, Clock

# Ref: Gradient2Limit: half at most in one step, of which a part is taken (a fifth there, too slow for an upstream that
# answers 100 a second and is asked for 200); RTT tolerance; smoothing of the base.
STEEPEST = 0.5
TAKEN = 0.5
TOLERANCE = 2.0
SMOOTHING = 0.2
# A probe whose latency stays above this share of what it was found an upstream that is slow, not one with a queue.
FOLLOWS = 0.8
PROBE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class ConcurrencySettings:
    """Times in seconds. `minimum` at once are always let through: latency with so few is the base.

    A window is `window_s` long and holds `samples` at least. A probe comes every `probe_every_s` at most, while the limit is
    being cut. What was cut `forget_s` ago, and not since, is forgotten when the limit is met again.
    """

    minimum: int = 16
    initial: int = 128
    maximum: int = 256
    queue_s: float = 0.1
    window_s: float = 0.1
    samples: int = 10
    probe_every_s: float = 10.0
    forget_s: float = 30.0


class AdaptiveLimit:
    """The limit of one upstream. Not thread-safe: its owner holds a lock.

    `in_flight` counts what has been entered and not left. Times are seconds on the monotonic clock, given by the caller.
    """

    def __init__(self, settings: ConcurrencySettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings
        self._random = clock.random
        self._estimate = float(settings.initial)
        self.limit = settings.initial
        self.in_flight = 0
        self.probe = 0
        self.probing = False
        # What a request takes when the upstream has few of them; None before that is known.
        self.base_s: float | None = None
        self._before_s = 0.0
        self._probe_until = 0.0
        self._next_probe = 0.0
        self._cut_at = -math.inf
        self._count = 0
        self._sum_s = 0.0
        self._peak = 0
        self._fewest = 0
        self._open(0.0)

    def enter(self, now: float) -> bool:
        """Whether one more fits; counts it if so."""
        if self.in_flight >= self.limit and not self._outdated(now):
            return False
        self.in_flight += 1
        return True

    def leave(self, began: float, probe: int, now: float, *, ok: bool | None) -> None:
        """One that entered at `began`, when `self.probe` was `probe`, is over; `ok` None: given up by its caller.

        What failed at once says nothing about latency; what failed after long cuts the limit, and never raises the base.
        """
        in_flight = self.in_flight
        self.in_flight = in_flight - 1
        if ok is None:
            return
        took_s = now - began
        if not ok and (self.base_s is None or took_s < self._bearable_s(self.base_s)):
            return
        if self.probing:
            if now >= self._probe_until:
                self._end_probe(now)
            elif probe != self.probe:
                return  # it entered when there were many
        if in_flight > self._peak:
            self._peak = in_flight
        if in_flight < self._fewest:
            self._fewest = in_flight
        if not ok:
            self._spoiled = True
        self._sum_s += took_s
        self._count += 1
        if now >= self._closes_at and self._count >= self._settings.samples:
            self._close(now)

    def _outdated(self, now: float) -> bool:
        """Whether the limit that stands in the way stands there no longer, once looked at."""
        if self.probing and now >= self._probe_until:
            self._end_probe(now)
        elif self._estimate < self._settings.initial and now - self._cut_at >= self._settings.forget_s:
            self._set(float(self._settings.initial))
        return self.in_flight < self.limit

    def _bearable_s(self, base_s: float) -> float:
        return max(base_s * TOLERANCE, base_s + self._settings.queue_s)

    def _close(self, now: float) -> None:
        """A window is full: learn from it, and begin the next."""
        settings = self._settings
        latency_s, peak, spoiled = self._sum_s / self._count, self._peak, self._spoiled
        ahead_s = (self._fewest - 1) * (now - self._opened_at) / self._count
        base_s = latency_s if self.base_s is None else self.base_s
        self._open(now)
        if self.probing:
            if latency_s < base_s or (latency_s >= FOLLOWS * self._before_s and not spoiled):
                base_s = latency_s
            self._end_probe(now)
        elif latency_s < base_s or (peak <= settings.minimum and not spoiled):
            base_s += SMOOTHING * (latency_s - base_s)
        elif peak * 2 >= self.limit:
            self._cut(latency_s, max(latency_s, ahead_s), self._bearable_s(base_s), now)
        if peak * 2 >= self.limit and max(latency_s, ahead_s) <= self._bearable_s(base_s):
            self._set(self._estimate + math.sqrt(self._estimate))
        self.base_s = base_s

    def _cut(self, latency_s: float, expected_s: float, bearable_s: float, now: float) -> None:
        """Cut the limit by how much longer requests will take than they may; find out whether those that did met a queue."""
        if expected_s <= bearable_s:
            return
        target = self._estimate * max(STEEPEST, bearable_s / expected_s) + math.sqrt(self._estimate)
        self._cut_at = now
        self._set(self._estimate + TAKEN * (target - self._estimate))
        if latency_s > bearable_s and now >= self._next_probe:
            self.probing = True
            self.probe += 1
            self._before_s = latency_s
            # Long enough for what is under way to end, and for as many again.
            self._probe_until = now + max(1.0, 4 * latency_s)
            self.limit = max(self._settings.minimum, int(self._estimate * PROBE_SHARE))

    def _end_probe(self, now: float) -> None:
        self.probing = False
        self.probe += 1
        # Not in step with the other gateways, which would see each other's probes.
        self._next_probe = now + self._settings.probe_every_s * (0.75 + 0.5 * self._random())
        self._set(self._estimate)
        self._open(now)

    def _open(self, now: float) -> None:
        self._opened_at = now
        self._closes_at = now + self._settings.window_s
        self._count = self._peak = 0
        self._fewest = 1_000_000
        self._sum_s = 0.0
        self._spoiled = False

    def _set(self, estimate: float) -> None:
        self._estimate = min(float(self._settings.maximum), max(float(self._settings.minimum), estimate))
        if not self.probing:
            self.limit = int(self._estimate)
