"""What may be retried, how long to wait before it, and how many retries a service may cost."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.errors import ConnectFailed, ResponseLost
from discovery.resilience.window import Window

# As at the edge. A PUT or DELETE may run twice by RFC 9110, but programs are not always as it says: those want a key.
REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS"})
# No 503: a service that sheds would get twice the load. No 504: it has been waited for already.
RETRIED_STATUSES = frozenset({502})


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """`attempts` includes the first; `sent` of them may have reached an instance. Retries of a service may be `ratio` of its calls over `window_s`, or `floor`."""

    attempts: int = 3
    sent: int = 2
    backoff_base_s: float = 0.02
    backoff_max_s: float = 0.25
    ratio: float = 0.2
    floor: int = 3
    window_s: float = 10.0


def may_run_twice(method: str, header_names: Collection[str]) -> bool:
    """Whether running the request a second time is harmless: by its method, or because it carries an Idempotency-Key."""
    return method.upper() in REPEATABLE or any(name.lower() == "idempotency-key" for name in header_names)


def may_retry(outcome: Exception | int, *, twice: bool, replayable: bool) -> bool:
    """Whether an attempt that ended so may be followed by another.

    `outcome` is the error, or the status of the answer; `twice`: the request may run twice; `replayable`: its body can be sent
    again from the beginning.
    """
    if not replayable:
        return False
    if isinstance(outcome, ConnectFailed):
        return True
    if isinstance(outcome, int):
        return twice and outcome in RETRIED_STATUSES
    return twice and isinstance(outcome, ResponseLost)


def backoff_s(settings: RetrySettings, retry: int, clock: Clock) -> float:
    """Seconds to wait before the `retry`-th retry (from 1): full jitter over an exponential bound."""
    return clock.random() * min(settings.backoff_max_s, settings.backoff_base_s * 2.0 ** min(retry, 16))


class RetryBudget:
    """Keeps retries from doubling the load of a service that is failing because of its load. One per service; thread-safe."""

    def __init__(self, settings: RetrySettings | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings or RetrySettings()
        self._window = Window(self._settings.window_s, clock)
        self._lock = threading.Lock()

    def called(self) -> None:
        """A call begins."""
        self._window.add(first=1)

    def spend(self) -> bool:
        """Whether one more retry fits; counts it if so."""
        with self._lock:
            fits = self._fits(1)
            if fits:
                self.borrow()
            return fits

    def borrow(self) -> None:
        """Count a retry whether it fits or not; later ones pay for it."""
        self._window.add(second=1)

    def overdrawn(self) -> bool:
        """Whether more was borrowed than there is."""
        return not self._fits(0)

    def _fits(self, more: int) -> bool:
        calls, retries = self._window.totals()
        return retries + more <= max(self._settings.floor, self._settings.ratio * calls)
