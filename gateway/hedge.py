"""Hedges: a second attempt while the first has not ended, when that takes longer than nearly all do; the better one counts.

Ref: Dean & Barroso, The Tail at Scale (CACM 2013): after the 95th percentile it costs 5 % more requests. The budget of
the retries bounds it beyond that: hedges must not double the load of a service that is slow because it is overloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import gevent
from gevent.event import Event

T = TypeVar("T")

# Below it, what looks like a slow attempt is this process being busy.
MIN_DELAY_S = 0.002


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """The value that counts. `hedged`: there was a second attempt; `won`: and it is the second one's."""

    value: T
    hedged: bool = False
    won: bool = False


class _Race(Generic[T]):
    def __init__(self, attempt: Callable[[], T], good: Callable[[T], bool]) -> None:
        self.over = Event()
        self._attempt = attempt
        self._good = good
        self._running = 0
        self._ended: list[tuple[int, T | None, Exception | None]] = []

    def start(self, number: int) -> gevent.Greenlet:
        self._running += 1
        return gevent.spawn(self._run, number)

    def _run(self, number: int) -> None:
        value: T | None = None
        error: Exception | None = None
        try:
            value = self._attempt()
        except Exception as raised:  # told to who waits
            error = raised
        self._running -= 1
        good = error is None and self._good(value)  # type: ignore[arg-type]
        self._ended.insert(0 if good else len(self._ended), (number, value, error))
        if good or not self._running:
            self.over.set()

    def outcome(self, *, hedged: bool) -> Outcome[T]:
        """The good one; without one an answer rather than an error, the first rather than the second."""
        number, value, error = min(
            self._ended, key=lambda each: (each[2] is not None, self._ended.index(each))
        )
        if error is not None:
            raise error
        return Outcome(value, hedged, hedged and number == 2)  # type: ignore[arg-type]


def hedged(
    attempt: Callable[[], T], *, delay_s: float, may: Callable[[], bool], good: Callable[[T], bool]
) -> Outcome[T]:
    """Run `attempt`; once it has taken `delay_s` and `may()` agrees, run it a second time at the same moment.

    The first that ends with a `good` value wins, and the other is cut off where it waits (GreenletExit): its connection is
    closed, and nothing is counted. An error is raised only when no attempt is left that could do better.
    """
    race = _Race(attempt, good)
    greenlets = [race.start(1)]
    try:
        if not race.over.wait(max(MIN_DELAY_S, delay_s)) and may():
            greenlets.append(race.start(2))
        race.over.wait()
    finally:
        gevent.killall([each for each in greenlets if not each.dead], block=False)
    return race.outcome(hedged=len(greenlets) == 2)
