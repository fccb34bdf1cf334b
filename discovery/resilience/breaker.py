"""One service's breaker: leave to call, the outcome, and changes of state that come from outside.

`calling()` in place of pybreaker's `call()`, which would hold a lock during the guarded call; and while closed neither, for
`calling()` costs an eighth of all that a call does, only to let it through.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import pybreaker

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.errors import BreakerOpen
from discovery.resilience.breaker_machine import (
    BreakerSettings,
    Cause,
    History,
    Machine,
    Storage,
    Transition,
    Trials,
    UpstreamFailure,
    Who,
)

__all__ = ["Breaker", "BreakerSettings", "BreakerSnapshot", "Permit", "Transition", "UpstreamFailure", "Who"]


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


class Permit:
    """Leave to make one call. Exactly one of its methods is to be called when the outcome is known; further ones do nothing."""

    def __init__(
        self,
        calling: AbstractContextManager[None] | None,
        machine: Machine,
        caller: str,
        give_back: Callable[[str], None],
    ) -> None:
        # None: given while closed, when pybreaker lets everything through and need not be asked.
        self._calling = calling
        self._machine: Machine | None = machine
        self._caller = caller
        self._give_back = give_back

    def succeeded(self) -> None:
        self._leave(None)

    def failed(self, reason: str) -> None:
        """The upstream failed."""
        self._leave(UpstreamFailure(reason))

    def ignored(self) -> None:
        """The outcome says nothing about the upstream: a caller's mistake, or one that would not wait. A trial is given back."""
        machine = self._machine
        self._leave(None, neutral=True)
        if machine is not None and self._calling is not None:
            self._give_back(self._caller)

    def _leave(self, error: UpstreamFailure | None, *, neutral: bool = False) -> None:
        machine, self._machine = self._machine, None
        if machine is None:
            return
        report = machine.storage.report
        report.neutral, report.caller = neutral, self._caller
        try:
            if self._calling is not None:
                self._calling.__exit__(type(error) if error else None, error, None)
            elif error is None:
                machine.storage.reset_counter()
            else:
                machine.failed(error)
        finally:
            report.neutral, report.caller = False, ""


class Breaker:
    """One service's breaker. Thread-safe, and under gevent; holds no lock while a call runs.

    `on_change(service, transition)` hears of every change of state; it runs within the breaker's lock and must be short.

    `open`, `half_open`, `close` and `prolong` change the state from outside. With `seen`, the number of a snapshot, they do so
    only if nothing has changed since it; they tell whether they did. `ref` and `reason` go into the transition.
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
        self._storage = Storage(self.settings, clock)
        self._trials = Trials(self.settings, clock)
        self._history = History(self._storage, clock, on_change)
        self._refused = 0
        self._machine = Machine(
            self._storage,
            fail_max=1,
            reset_timeout=self.settings.open_s,
            success_threshold=self.settings.successes,
            # Leaving a stream raises GeneratorExit, which must not count: only what is named counts.
            exclude=[lambda error: not isinstance(error, UpstreamFailure)],
            listeners=[self._trials, self._history],
            name=service,
            throw_new_error_on_trip=False,
        )

    def enter(self, caller: str = "") -> Permit:
        """Leave to make a call; report its outcome on the permit. Raises BreakerOpen.

        While others succeed, the failures of one `caller` alone (an address, a subject; empty: unknown) do not open it.
        """
        if self._storage.state == pybreaker.STATE_CLOSED:
            return Permit(None, self._machine, caller, self._give_back)
        calling, report = self._machine.calling(), self._storage.report
        report.caller = caller
        try:
            calling.__enter__()
        except pybreaker.CircuitBreakerError:
            with self._machine.lock:
                self._refused += 1
            wait_s = self._storage.retry_after_s() or self._trials.renew_after_s()
            raise BreakerOpen(self._service, retry_after_s=wait_s) from None
        finally:
            report.caller = ""
        return Permit(calling, self._machine, caller, self._give_back)

    def lost(self, reason: str, caller: str = "") -> None:
        """An answer that had begun well broke off: one failure more."""
        Permit(None, self._machine, caller, self._give_back).failed(reason)

    def _give_back(self, caller: str) -> None:
        with self._machine.lock:
            self._trials.give_back(caller)

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        return self._storage.state

    def snapshot(self) -> BreakerSnapshot:
        with self._machine.lock:
            calls, failures = self._storage.window.totals()
            return BreakerSnapshot(
                self._storage.state,
                calls,
                failures,
                self._storage.retry_after_s(),
                self._refused,
                self._held(),
                self._history.number,
                tuple(self._history.transitions),
            )

    def open(self, for_s: float, *, who: Who, reason: str, ref: str = "", seen: int | None = None) -> bool:
        """Open it for `for_s` seconds; then trials pass. By hand, failures and successes of calls under way change nothing."""
        with self._machine.lock:
            done = self._force(pybreaker.STATE_OPEN, (who, reason, ref), seen)
            if done:
                self._storage.open_for(for_s)
            return done

    def half_open(self, *, who: Who, reason: str, ref: str = "", seen: int | None = None) -> bool:
        """Let the trials through now."""
        return self._force(pybreaker.STATE_HALF_OPEN, (who, reason, ref), seen)

    def close(self, *, who: Who, reason: str, ref: str = "", seen: int | None = None) -> bool:
        """Close it, and forget what was counted."""
        return self._force(pybreaker.STATE_CLOSED, (who, reason, ref), seen)

    def prolong(self, for_s: float, *, seen: int | None = None) -> bool:
        """Keep an open one open for at least `for_s` more."""
        with self._machine.lock:
            if self._storage.state != pybreaker.STATE_OPEN or seen not in (None, self._history.number):
                return False
            self._storage.open_for(max(for_s, self._storage.retry_after_s()))
            return True

    def reconsider(self, reason: str) -> None:
        """Let the trials through early, if it was our own calls that opened it: who it was opened for may have changed."""
        with self._machine.lock:
            last = self._history.last
            if self._storage.state == pybreaker.STATE_OPEN and last is not None and last.who == "local":
                self._force(pybreaker.STATE_HALF_OPEN, ("local", reason, ""), None)

    def _held(self) -> bool:
        last = self._history.last
        return self._storage.state == pybreaker.STATE_OPEN and last is not None and last.who == "hand"

    def _force(self, state: str, cause: Cause, seen: int | None) -> bool:
        with self._machine.lock:
            if seen not in (None, self._history.number):
                return False
            self._history.cause = cause
            try:
                self._machine.force(state)
            finally:
                self._history.cause = None
            return True
