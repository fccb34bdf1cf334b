"""One service's circuit breaker: permission to call, the outcome, and changes of state that come from outside.

pybreaker is the state machine. Its storage answers with a failure rate over a window of time in place of a count of failures
in a row; one listener caps the trials while half-open, one says what has changed. A call does not run inside pybreaker: its
outcome is handed in at the end, unless the state has been overtaken since the call began.
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
from discovery.resilience.window import MAX_CALLERS, Window

log = structlog.get_logger(__name__)

State = Literal["closed", "open", "half-open"]
# local: what this process saw itself; shared: what another process has published; hand: an operator.
Who = Literal["local", "shared", "hand"]

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
    """A change of state, the `number`-th of its breaker. `at` is Unix time; `ref` names the message that caused it.

    `before` and `state` are the same where an open one was opened again, or a closed one reset.
    """

    number: int
    at: float
    before: str
    state: str
    who: Who
    reason: str
    ref: str = ""


@dataclass(frozen=True, slots=True)
class BreakerStatus:
    """`calls` and `failures` count what the window holds, `refused` since the start.

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
    """Its `counter` is 1 once the failure rate is reached, with `fail_max=1`."""

    def __init__(self, settings: BreakerSettings, clock: Clock) -> None:
        super().__init__(pybreaker.STATE_CLOSED)
        self._settings = settings
        self.window = Window(settings.window_s, clock)

    @property
    def counter(self) -> int:
        rate = self._settings.rate
        calls, failures = self.window.totals()
        if calls < self._settings.min_calls or failures < rate * calls:
            return 0
        # A caller that has found a request that always fails must not close the service to all others.
        others, others_failed = self.window.without_the_worst()
        return int(others < OTHERS or others_failed >= rate * others)


class Trials(pybreaker.CircuitBreakerListener):
    """The calls that may pass while half-open: so many per `open_s`, so that one that never ends blocks nothing for ever.

    A trial that said nothing is given back, and its caller gets no other in that time: a few impatient callers must not use up
    the trials of all.
    """

    def __init__(self, settings: BreakerSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._said_nothing: set[str] = set()
        self._renew()

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        self._renew()

    def _renew(self) -> None:
        self._said_nothing.clear()
        self._left = self._settings.trials
        self._renew_at = self._clock.monotonic() + self._settings.open_s

    def take(self, caller: str) -> float:
        """Take one; returns 0, or for how long there is none for this caller (seconds)."""
        now = self._clock.monotonic()
        if now >= self._renew_at:
            self._renew()
        if self._left <= 0 or caller in self._said_nothing:
            return max(0.001, self._renew_at - now)
        self._left -= 1
        return 0.0

    def give_back(self, caller: str) -> None:
        if len(self._said_nothing) < MAX_CALLERS:
            self._left = min(self._left + 1, self._settings.trials)
            self._said_nothing.update({caller} - {""})


@dataclass(slots=True)
class Permit:
    """Permission to make one call, after the `number`-th transition. One of its methods is to be called when the outcome is known."""

    breaker: Breaker
    caller: str
    number: int

    def succeeded(self) -> None:
        self.breaker.count(self.caller, self.number, None)

    def failed(self, reason: str) -> None:
        """The upstream failed."""
        self.breaker.count(self.caller, self.number, reason)

    def ignored(self) -> None:
        """The outcome says nothing about the upstream: a caller's mistake, or its impatience. A trial is given back."""
        self.breaker.give_back(self.caller, self.number)


class Breaker(pybreaker.CircuitBreakerListener):
    """One service's breaker. Thread-safe, and under gevent; holds no lock while a call runs.

    `on_change(service, transition)` hears of every change of state; it runs within the breaker's lock and must be short.
    """

    def __init__(
        self,
        service: str,
        settings: BreakerSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_change: Callable[[str, Transition], None] = lambda service, transition: None,
    ) -> None:
        self._service = service
        self.settings = settings or BreakerSettings()
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.RLock()
        self._storage = Storage(self.settings, clock)
        self._trials = Trials(self.settings, clock)
        self._last = Transition(0, clock.time(), "closed", "closed", "local", "")
        self._transitions: deque[Transition] = deque(maxlen=REMEMBERED)
        # Of a change from outside: who, why, by which message, and for how long if it opens.
        self._cause: tuple[Who, str, str, float] | None = None
        self._failure: str | None = None  # of the outcome that is being taken in
        self._until = 0.0
        self._refused = 0
        self._machine = pybreaker.CircuitBreaker(
            fail_max=1,
            success_threshold=self.settings.successes,
            state_storage=self._storage,
            listeners=[self._trials, self],
            throw_new_error_on_trip=False,
        )

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        return self._last.state

    def status(self) -> BreakerStatus:
        with self._lock:
            last, left_s = self._last, self._left_s()
            held = last.state == "open" and last.who == "hand"
            counts = self._storage.window.totals()
            return BreakerStatus(
                last.state, *counts, left_s, self._refused, held, last.number, tuple(self._transitions)
            )

    def enter(self, caller: str = "") -> Permit:
        """Permission to make a call; report its outcome on the permit. Raises BreakerOpen.

        While others succeed, the failures of one `caller` alone (an address, a subject; empty: unknown) do not open it.
        """
        if self._last.state == "closed":
            return Permit(self, caller, 0)
        with self._lock:
            wait_s = self._left_s()
            if self._last.state == "open" and not wait_s:
                self.change("half-open", who="local", reason="its time is over, trying")
            if self._last.state == "half-open":
                wait_s = self._trials.take(caller)
            if wait_s:
                self._refused += 1
                raise BreakerOpen(self._service, retry_after_s=wait_s)
            return Permit(self, caller, self._last.number)

    def count(self, caller: str, number: int, failure: str | None) -> None:
        """Take in how a call ended that began after the `number`-th transition; `failure` says what the upstream did wrong."""
        if failure is None and self._last.state == "closed":  # as nearly all: without the lock
            self._storage.window.add(1, 0, caller)
            return
        with self._lock:
            if self._last.state == "closed":
                self._storage.window.add(1, int(failure is not None), caller)
            elif number != self._last.number:
                return  # news of the time before the state changed
            self._failure = failure
            with contextlib.suppress(UpstreamFailure), self._machine.calling():
                if failure is not None:
                    raise UpstreamFailure

    def lost(self, reason: str, caller: str = "") -> None:
        """An answer that had begun well broke off: one failure more."""
        self.count(caller, -1, reason)

    def give_back(self, caller: str, number: int) -> None:
        """A call that began after the `number`-th transition said nothing."""
        with self._lock:
            if number == self._last.number:
                self._trials.give_back(caller)

    def change(
        self,
        state: State,
        for_s: float = 0.0,
        *,
        who: Who,
        reason: str,
        ref: str = "",
        seen: int | None = None,
    ) -> bool:
        """Change the state from outside; an opening lasts `for_s`. With `seen`, the number of a status, only if nothing has
        changed since it; returns whether it did. What calls under way then bring changes nothing."""
        with self._lock:
            if seen not in (None, self._last.number):
                return False
            self._cause = (who, reason, ref, for_s)
            machine = self._machine
            {"open": machine.open, "half-open": machine.half_open, "closed": machine.close}[state]()
            return True

    def prolong(self, for_s: float, *, seen: int) -> bool:
        """Keep an open one open for at least `for_s` more, if nothing has changed since the status with that number."""
        with self._lock:
            if self._last.state != "open" or seen != self._last.number:
                return False
            self._until = max(self._until, self._clock.monotonic() + for_s)
            return True

    def reconsider(self, reason: str) -> None:
        """Let the trials through early, if our own calls opened it: the instances it was opened for may have changed."""
        with self._lock:
            if (self._last.state, self._last.who) == ("open", "local"):
                self.change("half-open", who="local", reason=reason)

    def _left_s(self) -> float:
        return max(0.0, self._until - self._clock.monotonic()) if self._last.state == "open" else 0.0

    def state_change(self, cb: Any, old_state: Any, new_state: Any) -> None:
        """Called by pybreaker, within the lock."""
        last, state, now_s = self._last, new_state.name, self._clock.monotonic()
        cause, self._cause = self._cause, None
        who, reason, ref, for_s = cause or ("local", self._reason(), "", self.settings.open_s)
        self._until = now_s + for_s
        self._storage.window.clear()
        at = self._clock.time()
        self._last = Transition(last.number + 1, at, last.state, state, who, reason[:MAX_REASON], ref)
        self._transitions.append(self._last)
        log.info(
            "breaker changed", service=self._service, state=state, before=last.state, who=who, reason=reason
        )
        self._on_change(self._service, self._last)

    def _reason(self) -> str:
        if self._last.state == "closed":
            calls, failures = self._storage.window.totals()
            return f"{failures} of {calls} calls failed, the last: {self._failure}"
        return "its trials succeeded" if self._failure is None else f"a trial failed: {self._failure}"
