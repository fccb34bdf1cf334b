"""One service's circuit breaker: leave to call, the outcome, and changes of state that come from outside.

pybreaker is the state machine, with two additions: its storage answers with a failure rate over a window in place of a count
of failures in a row, and only some trials pass while half-open. A call does not run inside pybreaker, which would hold its
lock meanwhile: the outcome is handed to it at the end, unless the state has been overtaken since the call began.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pybreaker
import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.errors import BreakerOpen
from discovery.resilience.window import MAX_CALLERS, CallWindow

log = structlog.get_logger(__name__)

# local: what this process saw itself; shared: what another process has published; hand: an operator.
Who = Literal["local", "shared", "hand"]
CLOSED, OPEN, HALF_OPEN = pybreaker.STATE_CLOSED, pybreaker.STATE_OPEN, pybreaker.STATE_HALF_OPEN

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

    `ref` names the message that caused it. `before` and `state` are the same where an open one was opened again, or a closed
    one reset.
    """

    number: int
    at: float
    before: str
    state: str
    who: Who
    reason: str
    ref: str = ""


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """`state` is `closed`, `open` or `half-open`; `calls` and `failures` count what the window holds, `refused` since the start.

    `held`: an operator opened it, and it opens for nothing else until `retry_after_s` is over. `number` is that of the last
    of `transitions` (0: none yet), of which the last `REMEMBERED` are there, oldest first.
    """

    state: str
    calls: int
    failures: int
    retry_after_s: float
    refused: int = 0
    held: bool = False
    number: int = 0
    transitions: tuple[Transition, ...] = ()


class UpstreamFailure(Exception):
    """What counts against the upstream."""


class Storage(pybreaker.CircuitMemoryStorage):
    """Counts by time, and only while closed. `counter` answers 1 once the rate is reached (with `fail_max=1`)."""

    def __init__(self, settings: BreakerSettings, clock: Clock) -> None:
        super().__init__(CLOSED)
        self._settings = settings
        self.window = CallWindow(settings.window_s, clock)
        self.caller = ""  # of the call whose outcome is being counted

    @property
    def state(self) -> str:
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state
        self.window.clear()

    def increment_counter(self) -> None:
        if self._state == CLOSED:
            self.window.count(self.caller, failed=True)

    def reset_counter(self) -> None:
        if self._state == CLOSED:
            self.window.count(self.caller, failed=False)

    @property
    def counter(self) -> int:
        calls, failures = self.window.totals()
        if calls < self._settings.min_calls or failures < self._settings.rate * calls:
            return 0
        # A caller that has found a request that always fails must not close the service to all others.
        others, others_failed = self.window.without_the_worst()
        return int(others < OTHERS or others_failed >= self._settings.rate * others)


class Trials:
    """The calls that may pass while half-open: so many per `open_s`, so that one that never ends blocks nothing for ever.

    A trial that said nothing is given back, and its caller gets no other in that time: a few impatient callers must not use up
    the trials of all.
    """

    def __init__(self, settings: BreakerSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._left = 0
        self._renew_at = 0.0
        self._said_nothing: set[str] = set()

    def renew(self) -> None:
        self._said_nothing.clear()
        self._left = self._settings.trials
        self._renew_at = self._clock.monotonic() + self._settings.open_s

    def take(self, caller: str) -> float:
        """Take one; returns 0, or for how long there is none for this caller (seconds)."""
        now = self._clock.monotonic()
        if now >= self._renew_at:
            self.renew()
        if self._left <= 0 or caller in self._said_nothing:
            return max(0.001, self._renew_at - now)
        self._left -= 1
        return 0.0

    def give_back(self, caller: str) -> None:
        if len(self._said_nothing) < MAX_CALLERS:
            self._left = min(self._left + 1, self._settings.trials)
            self._said_nothing.update({caller} - {""})


class Permit:
    """Leave to make one call. Exactly one of its methods is to be called when the outcome is known; further ones do nothing."""

    __slots__ = ("_breaker", "_caller", "_number")

    def __init__(self, breaker: Breaker, caller: str, number: int) -> None:
        self._breaker: Breaker | None = breaker
        self._caller = caller
        self._number = number  # of the breaker's last transition when the call began

    def succeeded(self) -> None:
        if breaker := self._spend():
            breaker.count(self._caller, self._number, None)

    def failed(self, reason: str) -> None:
        """The upstream failed."""
        if breaker := self._spend():
            breaker.count(self._caller, self._number, UpstreamFailure(reason))

    def ignored(self) -> None:
        """The outcome says nothing about the upstream: a caller's mistake, or its impatience. A trial is given back."""
        if breaker := self._spend():
            breaker.give_back(self._caller, self._number)

    def _spend(self) -> Breaker | None:
        breaker, self._breaker = self._breaker, None
        return breaker


class Breaker(pybreaker.CircuitBreakerListener):
    """One service's breaker. Thread-safe, and under gevent; holds no lock while a call runs.

    `on_change(service, transition)` hears of every change of state; it runs within the breaker's lock and must be short.

    `open`, `half_open`, `close` and `prolong` change the state from outside. With `seen`, the number of a snapshot, they do so
    only if nothing has changed since it; they return whether they did. `ref` and `reason` go into the transition.
    """

    def __init__(
        self,
        service: str,
        settings: BreakerSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_change: Callable[[str, Transition], None] | None = None,
    ) -> None:
        self._service = service
        self.settings = settings or BreakerSettings()
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.RLock()
        self._storage = Storage(self.settings, clock)
        self._trials = Trials(self.settings, clock)
        self._transitions: deque[Transition] = deque(maxlen=REMEMBERED)
        self._cause: tuple[Who, str, str] | None = None  # of a change from outside: who, reason, ref
        self._until = 0.0
        self._refused = 0
        self._last_failure = ""
        self._machine = pybreaker.CircuitBreaker(
            fail_max=1,
            success_threshold=self.settings.successes,
            state_storage=self._storage,
            listeners=[self],
            name=service,
            throw_new_error_on_trip=False,
        )

    def enter(self, caller: str = "") -> Permit:
        """Leave to make a call; report its outcome on the permit. Raises BreakerOpen.

        While others succeed, the failures of one `caller` alone (an address, a subject; empty: unknown) do not open it.
        """
        if self._storage.state == CLOSED:
            return Permit(self, caller, 0)
        with self._lock:
            wait_s = self._retry_after_s()
            if self._storage.state == OPEN and not wait_s:
                self._machine.half_open()
            if self._storage.state == HALF_OPEN:
                wait_s = self._trials.take(caller)
            if wait_s:
                self._refused += 1
                raise BreakerOpen(self._service, retry_after_s=wait_s)
            return Permit(self, caller, self._number)

    def count(self, caller: str, number: int, failure: UpstreamFailure | None) -> None:
        """Take in how a call ended that began after the `number`-th transition."""
        if failure is None and self._storage.state == CLOSED:
            self._storage.window.count(caller, failed=False)
            return
        with self._lock:
            # News of the time before the state changed changes nothing; it only counts where calls are counted.
            if self._storage.state == CLOSED or self._tries(number):
                self._storage.caller = caller
                with contextlib.suppress(UpstreamFailure):
                    self._machine.call(_end, failure)

    def lost(self, reason: str, caller: str = "") -> None:
        """An answer that had begun well broke off: one failure more."""
        self.count(caller, -1, UpstreamFailure(reason))

    def give_back(self, caller: str, number: int) -> None:
        """A call that began after the `number`-th transition said nothing."""
        with self._lock:
            if self._tries(number):
                self._trials.give_back(caller)

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        return self._storage.state

    def snapshot(self) -> BreakerSnapshot:
        with self._lock:
            calls, failures = self._storage.window.totals()
            return BreakerSnapshot(
                self._storage.state,
                calls,
                failures,
                self._retry_after_s(),
                self._refused,
                self._opened_by("hand"),
                self._number,
                tuple(self._transitions),
            )

    def open(self, for_s: float, *, who: Who, reason: str, ref: str = "", seen: int | None = None) -> bool:
        """Open it for `for_s` seconds; then trials pass. By hand, failures and successes of calls under way change nothing."""
        with self._lock:
            done = self._force(self._machine.open, (who, reason, ref), seen)
            if done:
                self._until = self._clock.monotonic() + for_s
            return done

    def half_open(self, *, who: Who, reason: str, ref: str = "", seen: int | None = None) -> bool:
        """Let the trials through now."""
        return self._force(self._machine.half_open, (who, reason, ref), seen)

    def close(self, *, who: Who, reason: str, ref: str = "", seen: int | None = None) -> bool:
        """Close it, and forget what was counted."""
        return self._force(self._machine.close, (who, reason, ref), seen)

    def prolong(self, for_s: float, *, seen: int | None = None) -> bool:
        """Keep an open one open for at least `for_s` more."""
        with self._lock:
            if self._storage.state != OPEN or seen not in (None, self._number):
                return False
            self._until = max(self._until, self._clock.monotonic() + for_s)
            return True

    def reconsider(self, reason: str) -> None:
        """Let the trials through early, if our own calls opened it: the instances it was opened for may have changed."""
        with self._lock:
            if self._opened_by("local"):
                self._force(self._machine.half_open, ("local", reason, ""), None)

    @property
    def _number(self) -> int:
        return self._transitions[-1].number if self._transitions else 0

    def _tries(self, number: int) -> bool:
        """Whether it is still half-open as it was after that transition."""
        return self._storage.state == HALF_OPEN and number == self._number

    def _opened_by(self, who: Who) -> bool:
        return self._storage.state == OPEN and bool(self._transitions) and self._transitions[-1].who == who

    def _retry_after_s(self) -> float:
        return max(0.0, self._until - self._clock.monotonic()) if self._storage.state == OPEN else 0.0

    def _force(self, change: Callable[[], object], cause: tuple[Who, str, str], seen: int | None) -> bool:
        with self._lock:
            if seen not in (None, self._number):
                return False
            self._cause = cause
            try:
                change()
            finally:
                self._cause = None
            return True

    # -- called by pybreaker, within the lock

    def failure(self, cb: Any, exc: BaseException) -> None:
        self._last_failure = str(exc)

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        before, state = old_state.name if old_state else "", new_state.name
        if state == OPEN:
            self._until = self._clock.monotonic() + self.settings.open_s
        elif state == HALF_OPEN:
            self._trials.renew()
        who, reason, ref = self._cause or ("local", self._reason(before, state), "")
        now = self._clock.time()
        transition = Transition(self._number + 1, now, before, state, who, reason[:MAX_REASON], ref)
        self._transitions.append(transition)
        log.info("breaker changed", service=self._service, state=state, before=before, who=who, reason=reason)
        if self._on_change is not None:
            self._on_change(self._service, transition)

    def _reason(self, before: str, state: str) -> str:
        if state == HALF_OPEN:
            return "its time is over, trying"
        if state == CLOSED:
            return "its trials succeeded"
        if before == HALF_OPEN:
            return f"a trial failed: {self._last_failure}"
        # The window still stands: pybreaker calls its listeners before its storage.
        calls, failures = self._storage.window.totals()
        return f"{failures} of {calls} calls failed, the last: {self._last_failure}"


def _end(failure: UpstreamFailure | None) -> None:
    if failure is not None:
        raise failure
