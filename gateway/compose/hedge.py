"""Hedges: a second attempt while the first has not ended, when that takes longer than nearly all do; the better one counts.

Ref: Dean & Barroso, The Tail at Scale (CACM 2013): after the 95th percentile it costs 5 % more requests. The budget of
the retries bounds it beyond that: hedges must not double the load of a service that is slow because it is overloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import gevent

T = TypeVar("T")

# Below it, what looks like a slow attempt is this process being busy.
MIN_DELAY_S = 0.002


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """The value that counts. `hedged`: there was a second attempt; `won`: and it is the second one's."""

    value: T
    hedged: bool = False
    won: bool = False


class _Overtaken(BaseException):
    """Thrown into the first attempt where it waits, once the second has won."""


class _Race(Generic[T]):
    """Two attempts: the first runs in the caller's greenlet, the second in one that a timer starts."""

    def __init__(self, attempt: Callable[[], T], may: Callable[[], bool], good: Callable[[T], bool]) -> None:
        self._attempt = attempt
        self._may = may
        self._good = good
        self._caller = gevent.getcurrent()
        self._first_runs = True
        self._second: gevent.Greenlet | None = None
        self._hedged = False
        self._values: list[tuple[T, bool]] = []
        self._errors: list[Exception] = []

    def run(self, delay_s: float) -> Outcome[T]:
        timer = gevent.get_hub().loop.timer(delay_s)
        timer.start(self._start_second)
        try:
            if not self._first() and self._second is not None:
                self._second.join()
        finally:
            timer.close()
            if self._second is not None and not self._second.dead:
                self._second.kill(block=False)
        if not self._values:
            raise self._errors[0]
        # A good one counts; of two others, the first's.
        value, by_second = min(self._values, key=lambda each: (not self._good(each[0]), each[1]))
        return Outcome(value, self._hedged, by_second)

    def _first(self) -> bool:
        """Whether it is decided: by a good value, or because the second has one."""
        try:
            return self._try(second=False)
        except _Overtaken:
            return True
        finally:
            self._first_runs = False

    def _try(self, *, second: bool) -> bool:
        """One attempt: whether its value is good. An error is kept, for the other attempt may do better."""
        try:
            value = self._attempt()
        except Exception as error:
            self._errors.append(error)
            return False
        self._values.append((value, second))
        return self._good(value)

    def _start_second(self) -> None:
        """Called by the loop, where nothing may wait."""
        if self._first_runs:
            self._second = gevent.spawn(self._run_second)

    def _run_second(self) -> None:
        if self._may():
            self._hedged = True
            if self._try(second=True):
                gevent.get_hub().loop.run_callback(self._overtake)

    def _overtake(self) -> None:
        if self._first_runs:
            self._caller.throw(_Overtaken())


def hedged(
    attempt: Callable[[], T], *, delay_s: float, may: Callable[[], bool], good: Callable[[T], bool]
) -> Outcome[T]:
    """Run `attempt`; once it has taken `delay_s` and `may()` agrees, run it a second time at the same moment.

    The first that ends with a `good` value wins, and the other is cut off where it waits, by a BaseException: its connection is
    closed, and nothing is counted. An error is raised only when no attempt is left that could do better.
    """
    return _Race(attempt, may, good).run(max(MIN_DELAY_S, delay_s))
