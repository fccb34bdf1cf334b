"""pybreaker, made concurrent and rate-based.

`calling()` in place of `call()`, which would hold a lock during the guarded call; a storage that answers with a failure rate
over a window in place of a count of failures in a row; and a listener that lets only some trials through while half-open.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pybreaker
import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.errors import BreakerOpen
from discovery.window import Window

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """Opens when at least `rate` of `min_calls` or more calls within `window_s` failed; tries again after `open_s`.

    Half-open, `trials` calls may pass in every `open_s`; when `successes` of them succeed it closes, one failure opens it.
    """

    window_s: float = 10.0
    min_calls: int = 20
    rate: float = 0.5
    open_s: float = 5.0
    trials: int = 3
    successes: int = 2


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """`state` is `closed`, `open` or `half-open`; `calls` and `failures` count what the window holds."""

    state: str
    calls: int
    failures: int
    retry_after_s: float


class UpstreamFailure(Exception):
    """What counts against the upstream; everything else that ends a call does not."""


class _Storage(pybreaker.CircuitBreakerStorage):
    """Counts by time. `counter` answers 1 once the rate is reached (with `fail_max=1`), and counts only while closed.

    Late news thus changes nothing: a call that began before the breaker opened, and ends after.
    """

    def __init__(self, settings: BreakerSettings, clock: Clock) -> None:
        super().__init__("window")
        self._settings = settings
        self._clock = clock
        self._state: str = pybreaker.STATE_CLOSED
        self._successes = 0
        self._opened_at = 0.0
        self.window = Window(settings.window_s, clock)
        self.neutral = threading.local()

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state
        self.window.clear()

    def increment_counter(self) -> None:
        if self._state == pybreaker.STATE_CLOSED:
            self.window.add(first=1, second=1)

    def reset_counter(self) -> None:
        if self._state == pybreaker.STATE_CLOSED and not getattr(self.neutral, "on", False):
            self.window.add(first=1)

    @property
    def counter(self) -> int:
        if self._state != pybreaker.STATE_CLOSED:
            return 0
        calls, failures = self.window.totals()
        return int(calls >= self._settings.min_calls and failures >= self._settings.rate * calls)

    def increment_success_counter(self) -> None:
        if self._state == pybreaker.STATE_HALF_OPEN and not getattr(self.neutral, "on", False):
            self._successes += 1

    def reset_success_counter(self) -> None:
        self._successes = 0

    @property
    def success_counter(self) -> int:
        return self._successes

    @property
    def opened_at(self) -> datetime | None:
        # pybreaker compares with the wall clock, which can be set: count on ours.
        return datetime.now(UTC) - timedelta(seconds=self._clock.monotonic() - self._opened_at)

    @opened_at.setter
    def opened_at(self, at: datetime) -> None:
        self._opened_at = self._clock.monotonic()

    def retry_after_s(self) -> float:
        if self._state != pybreaker.STATE_OPEN:
            return 0.0
        return max(0.0, self._opened_at + self._settings.open_s - self._clock.monotonic())


class _Trials(pybreaker.CircuitBreakerListener):
    """Caps the calls that pass while half-open, and reports changes of state.

    The cap is per `open_s` and not per call in flight, so that a trial which never ends blocks nothing for ever.
    """

    def __init__(
        self, settings: BreakerSettings, clock: Clock, on_change: Callable[[str, str], None] | None
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._on_change = on_change
        self._left = 0
        self._renew_at = 0.0

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        # pybreaker holds its lock here, so that counting is safe.
        if cb.current_state != pybreaker.STATE_HALF_OPEN:
            return
        now = self._clock.monotonic()
        if now >= self._renew_at:
            self._renew(now)
        if self._left <= 0:
            raise pybreaker.CircuitBreakerError("all trials are under way")
        self._left -= 1

    def _renew(self, now: float) -> None:
        self._left = self._settings.trials
        self._renew_at = now + self._settings.open_s

    def renew_after_s(self) -> float:
        return max(0.0, self._renew_at - self._clock.monotonic())

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        if new_state.name == pybreaker.STATE_HALF_OPEN:
            self._renew(self._clock.monotonic())
        old = old_state.name if old_state else ""
        if old == new_state.name:
            return
        log.info("breaker changed", service=cb.name, state=new_state.name, before=old)
        if self._on_change is not None:
            self._on_change(cb.name, new_state.name)


class Permit:
    """Leave to make one call. Exactly one of its methods is to be called when the outcome is known; further ones do nothing."""

    def __init__(self, calling: AbstractContextManager[None], storage: _Storage) -> None:
        self._calling: AbstractContextManager[None] | None = calling
        self._storage = storage

    def succeeded(self) -> None:
        self._leave(None)

    def failed(self, reason: str) -> None:
        """The upstream failed."""
        self._leave(UpstreamFailure(reason))

    def ignored(self) -> None:
        """The outcome says nothing about the upstream: a caller's mistake, or one who would not wait."""
        self._storage.neutral.on = True
        try:
            self._leave(None)
        finally:
            self._storage.neutral.on = False

    def _leave(self, error: UpstreamFailure | None) -> None:
        calling, self._calling = self._calling, None
        if calling is not None:
            calling.__exit__(type(error) if error else None, error, None)


class Breaker:
    """One service's breaker. Thread-safe, and under gevent; holds no lock while a call runs.

    `on_change(service, state)` hears of every change of state; it runs within the breaker's lock and must be short.
    """

    def __init__(
        self,
        service: str,
        settings: BreakerSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_change: Callable[[str, str], None] | None = None,
    ) -> None:
        self._service = service
        self._settings = settings or BreakerSettings()
        self._storage = _Storage(self._settings, clock)
        self._trials = _Trials(self._settings, clock, on_change)
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=1,
            reset_timeout=self._settings.open_s,
            success_threshold=self._settings.successes,
            # Leaving a stream raises GeneratorExit, which must not count: only what is named counts.
            exclude=[lambda error: not isinstance(error, UpstreamFailure)],
            listeners=[self._trials],
            state_storage=self._storage,
            name=service,
            throw_new_error_on_trip=False,
        )

    def enter(self) -> Permit:
        """Leave to make a call; report its outcome on the permit. Raises BreakerOpen."""
        calling = self._breaker.calling()
        try:
            calling.__enter__()
        except pybreaker.CircuitBreakerError:
            wait_s = self._storage.retry_after_s() or self._trials.renew_after_s()
            raise BreakerOpen(self._service, retry_after_s=wait_s) from None
        return Permit(calling, self._storage)

    def snapshot(self) -> BreakerSnapshot:
        calls, failures = self._storage.window.totals()
        return BreakerSnapshot(self._storage.state, calls, failures, self._storage.retry_after_s())
