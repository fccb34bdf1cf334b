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
    """Two attempts: the first runs in the greenlet that asks, the second in one that a timer starts."""

    def __init__(self, attempt: Callable[[], T], may: Callable[[], bool], good: Callable[[T], bool]) -> None:
        self._attempt = attempt
        self._may = may
        self._good = good
        self._asker = gevent.getcurrent()
        self._first_runs = True
        self._second: gevent.Greenlet | None = None
        self._hedged = False
        self._values: list[tuple[T, bool]] = []
        self._errors: list[Exception] = []

    def run(self, delay_s: float) -> Outcome[T]:
        timer = gevent.get_hub().loop.timer(delay_s)
        timer.start(self._start_second)
        try:
            won = self._first()
            if not won and self._second is not None:
                self._second.join()
        finally:
            timer.close()
            if self._second is not None and not self._second.dead:
                self._second.kill(block=False)
        return self._outcome()

    def _first(self) -> bool:
        """Whether it is over: with a good value, or because the second has one."""
        try:
            value = self._attempt()
        except _Overtaken:
            return True
        except Exception as error:  # told to who asks, unless the second does better
            self._errors.append(error)
            return False
        finally:
            self._first_runs = False
        self._values.append((value, False))
        return self._good(value)

    def _start_second(self) -> None:
        """Called by the loop, where nothing may wait."""
        if self._first_runs:
            self._second = gevent.spawn(self._run_second)

    def _run_second(self) -> None:
        if not self._may():
            return
        self._hedged = True
        try:
            value = self._attempt()
        except Exception as error:  # as above
            self._errors.append(error)
            return
        self._values.append((value, True))
        if self._good(value):
            gevent.get_hub().loop.run_callback(self._overtake)

    def _overtake(self) -> None:
        if self._first_runs:
            self._asker.throw(_Overtaken())

    def _outcome(self) -> Outcome[T]:
        if not self._values:
            raise self._errors[0]
        # A good one counts; of two others, the first's.
        value, by_second = min(self._values, key=lambda each: (not self._good(each[0]), each[1]))
        return Outcome(value, self._hedged, by_second)


def hedged(
    attempt: Callable[[], T], *, delay_s: float, may: Callable[[], bool], good: Callable[[T], bool]
) -> Outcome[T]:
    """Run `attempt`; once it has taken `delay_s` and `may()` agrees, run it a second time at the same moment.

    The first that ends with a `good` value wins, and the other is cut off where it waits, by a BaseException: its connection is
    closed, and nothing is counted. An error is raised only when no attempt is left that could do better.
    """
    return _Race(attempt, may, good).run(max(MIN_DELAY_S, delay_s))
