"""pybreaker, made rate-based and concurrent: the parts that `discovery.resilience.breaker` puts together.

A storage that answers with a failure rate over a window in place of a count of failures in a row, a listener that lets only
some trials through while half-open, one that remembers, and a machine that can be told what to do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pybreaker
import structlog

from discovery.clock import Clock
from discovery.resilience.window import MAX_CALLERS, CallWindow

log = structlog.get_logger(__name__)

# local: what this process saw itself; shared: what another one told; hand: an operator.
Who = Literal["local", "shared", "hand"]

# What caused a change: who, the reason in words, and `ref`.
Cause = tuple[Who, str, str]

REMEMBERED = 20
MAX_REASON = 200
# With at least this many calls of others in the window, one caller's failures alone open nothing.
OTHERS = 5


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
class Transition:
    """A change of state, the `number`-th of its breaker. `at` is Unix time.

    `ref` names the news that caused it, as whoever brought it called it. `before` and `state` are the same where what was
    open was opened again, or what was closed reset: such is told as well.
    """

    number: int
    at: float
    before: str
    state: str
    who: Who
    reason: str
    ref: str = ""


class UpstreamFailure(Exception):
    """What counts against the upstream; everything else that ends a call does not."""


class Report(threading.local):
    """What a permit tells the storage, past pybreaker: `neutral`, the outcome counts neither way; `caller`, whose call it was."""

    neutral = False
    caller = ""


class Storage(pybreaker.CircuitBreakerStorage):
    """Counts by time. `counter` answers 1 once the rate is reached (with `fail_max=1`), and counts only while closed.

    Late news thus changes nothing: a call that began before the breaker opened, and ends after.
    """

    def __init__(self, settings: BreakerSettings, clock: Clock) -> None:
        super().__init__("window")
        self._settings = settings
        self._clock = clock
        self._state: str = pybreaker.STATE_CLOSED
        self._successes = 0
        self._until = 0.0
        self.window = CallWindow(settings.window_s, clock)
        self.report = Report()

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state
        self.window.clear()

    def increment_counter(self) -> None:
        if self._state == pybreaker.STATE_CLOSED:
            self.window.count(self.report.caller, failed=True)

    def reset_counter(self) -> None:
        if self._state == pybreaker.STATE_CLOSED and not self.report.neutral:
            self.window.count(self.report.caller, failed=False)

    @property
    def counter(self) -> int:
        if self._state != pybreaker.STATE_CLOSED:
            return 0
        calls, failures = self.window.totals()
        if calls < self._settings.min_calls or failures < self._settings.rate * calls:
            return 0
        # Whoever has found a request that always fails must not close the service to everybody else.
        others, others_failed = self.window.without_the_worst()
        return int(others < OTHERS or others_failed >= self._settings.rate * others)

    def increment_success_counter(self) -> None:
        if self._state == pybreaker.STATE_HALF_OPEN and not self.report.neutral:
            self._successes += 1

    def reset_success_counter(self) -> None:
        self._successes = 0

    @property
    def success_counter(self) -> int:
        return self._successes

    @property
    def opened_at(self) -> datetime | None:
        # pybreaker adds its reset_timeout and compares with the wall clock, which can be set: count on ours.
        left_s = self._until - self._clock.monotonic()
        return datetime.now(UTC) + timedelta(seconds=left_s - self._settings.open_s)

    @opened_at.setter
    def opened_at(self, at: datetime) -> None:
        self.open_for(self._settings.open_s)

    def open_for(self, for_s: float) -> None:
        self._until = self._clock.monotonic() + for_s

    def retry_after_s(self) -> float:
        if self._state != pybreaker.STATE_OPEN:
            return 0.0
        return max(0.0, self._until - self._clock.monotonic())


class Trials(pybreaker.CircuitBreakerListener):
    """Caps the calls that pass while half-open. pybreaker holds its lock during `before_call`, so that counting is safe.

    The cap is per `open_s` and not per call in flight, so that a trial which never ends blocks nothing for ever. One that said
    nothing is given back, and its caller gets no other in that time: few who never wait must not use up everybody's.
    """

    def __init__(self, settings: BreakerSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._left = 0
        self._renew_at = 0.0
        self._said_nothing: set[str] = set()

    def before_call(self, cb: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        if cb.current_state != pybreaker.STATE_HALF_OPEN:
            return
        if self._clock.monotonic() >= self._renew_at:
            self._renew()
        if self._left <= 0 or cb.storage.report.caller in self._said_nothing:
            raise pybreaker.CircuitBreakerError("all trials are under way")
        self._left -= 1

    def give_back(self, caller: str) -> None:
        """The trial of this caller (empty: unknown) said nothing."""
        if len(self._said_nothing) < MAX_CALLERS:
            self._left = min(self._left + 1, self._settings.trials)
            self._said_nothing.update({caller} - {""})

    def _renew(self) -> None:
        self._said_nothing.clear()
        self._left = self._settings.trials
        self._renew_at = self._clock.monotonic() + self._settings.open_s

    def renew_after_s(self) -> float:
        return max(0.0, self._renew_at - self._clock.monotonic())

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        if new_state.name == pybreaker.STATE_HALF_OPEN:
            self._renew()


class History(pybreaker.CircuitBreakerListener):
    """Remembers and tells the changes of state, all of which happen under pybreaker's lock."""

    def __init__(
        self, storage: Storage, clock: Clock, on_change: Callable[[str, Transition], None] | None
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._on_change = on_change
        self._failure = ""
        self.transitions: deque[Transition] = deque(maxlen=REMEMBERED)
        self.cause: Cause | None = None

    @property
    def last(self) -> Transition | None:
        return self.transitions[-1] if self.transitions else None

    @property
    def number(self) -> int:
        return self.last.number if self.last else 0

    def failure(self, cb: Any, exc: BaseException) -> None:
        self._failure = str(exc)

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        before, state = old_state.name if old_state else "", new_state.name
        if self.cause is None and before == state:
            return
        who, reason, ref = self.cause or ("local", self._reason(before, state), "")
        transition = Transition(
            self.number + 1, self._clock.time(), before, state, who, reason[:MAX_REASON], ref
        )
        self.transitions.append(transition)
        log.info("breaker changed", service=cb.name, state=state, before=before, who=who, reason=reason)
        if self._on_change is not None:
            self._on_change(cb.name, transition)

    def _reason(self, before: str, state: str) -> str:
        if state == pybreaker.STATE_HALF_OPEN:
            return "its time is over, trying"
        if state == pybreaker.STATE_CLOSED:
            return "its trials succeeded"
        if before == pybreaker.STATE_HALF_OPEN:
            return f"a trial failed: {self._failure}"
        # The window still stands: pybreaker tells its listeners before its storage.
        calls, failures = self._storage.window.totals()
        return f"{failures} of {calls} calls failed, the last: {self._failure}"


class Machine(pybreaker.CircuitBreaker):
    """pybreaker's states call `open` and `close` when a call has ended; what has been overtaken since it began is not obeyed."""

    def __init__(self, storage: Storage, **options: Any) -> None:
        self.storage = storage
        super().__init__(state_storage=storage, **options)

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """The lock that every change of state happens under."""
        return self._lock

    def open(self) -> bool:
        with self._lock:
            half_open = self.storage.state == pybreaker.STATE_HALF_OPEN
            return super().open() if half_open or self.storage.counter else False

    def close(self) -> None:
        with self._lock:
            if self.storage.state == pybreaker.STATE_HALF_OPEN:
                super().close()

    def failed(self, error: UpstreamFailure) -> None:
        """A call that was let through while closed has failed; it counts if that still is the state."""
        with self._lock:
            if self.storage.state == pybreaker.STATE_CLOSED:
                calling = self.calling()
                calling.__enter__()
                calling.__exit__(type(error), error, None)

    def force(self, state: str) -> None:
        """Into this state, whatever the present one."""
        {"open": super().open, "half-open": super().half_open, "closed": super().close}[state]()
