"""Wholes that every caller may have: kept in this process for as long as their parts allow, and dropped once a part has changed.

Only what all parts call public is ever here, so a route whose parts are private costs one look into a dictionary. Redis is not
asked: to find a whole there would cost as much as to make it. Of a whole that has been here and is to be made anew, one request
makes it, and those that come meanwhile wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from cachetools import LRUCache
from gevent.event import Event

from discovery.clock import SYSTEM_CLOCK, Clock
from gateway.cache import AnswerCache
from gateway.cache.coalesce import Flights
from gateway.cache.rules import Lifetime
from gateway.cache.trust import state_of
from gateway.compose.result import Result
from gateway.model import Answer

MAX_BYTES = 16 * 1024 * 1024
# What a whole takes beside its data.
OVERHEAD_BYTES = 2000

Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Made:
    """A whole that has just been made. `fresh_s` is how long every caller may have it, 0 for not at all; `places` are its parts'
    (service, plain path)."""

    answer: Answer
    results: Sequence[Result] = ()
    fresh_s: float = 0.0
    places: Sequence[Place] = ()


@dataclass(slots=True)
class _Kept:
    made: Made
    at: float
    mark: int
    size: int


class Wholes:
    """For the greenlets of one thread. `get_or_make` is all that is needed."""

    def __init__(self, cache: AnswerCache, clock: Clock = SYSTEM_CLOCK, max_bytes: int = MAX_BYTES) -> None:
        self._cache = cache
        self._clock = clock
        self._max_bytes = max_bytes
        self._kept: LRUCache[Hashable, _Kept] = LRUCache(max_bytes, attrgetter("size"))
        self._flights: Flights[None] = Flights(Event)

    @property
    def bytes(self) -> int:
        return int(self._kept.currsize)

    def get_or_make(
        self,
        key: Hashable,
        make: Callable[[], Made],
        give: Callable[[Sequence[Result]], Answer],
        *,
        wait_s: float,
        renew: bool = False,
    ) -> Answer:
        """The whole as `give` makes it of parts that are kept, or as `make` makes it.

        With `renew` it is made in any case. What `make` raises passes through. Another's making is waited for `wait_s` at most.
        """
        known = self._kept.get(key)
        if known is None:
            return self._make(key, make)
        if not renew and self._holds(known):
            return self._give(known, give)
        flight, leads = self._flights.enter(key)
        if leads:
            try:
                return self._make(key, make)
            finally:
                if self._kept.get(key) is known:
                    del self._kept[key]
                self._flights.leave(key, flight)
        if not renew and flight.wait(wait_s):
            known = self._kept.get(key)
            if known is not None and self._holds(known):
                return self._give(known, give)
        return make().answer

    def _holds(self, kept: _Kept) -> bool:
        if state_of(Lifetime(kept.made.fresh_s), self._clock.monotonic() - kept.at) is None:
            return False
        mark = self._cache.mark()
        if not self._cache.unchanged(kept.made.places, kept.mark, kept.at):
            return False
        kept.mark = mark
        return True

    def _give(self, kept: _Kept, give: Callable[[Sequence[Result]], Answer]) -> Answer:
        elapsed_s = int(self._clock.monotonic() - kept.at)
        return give(
            [
                replace(each, source="cache", age_s=each.age_s + elapsed_s, attempts=0, cached="HIT")
                for each in kept.made.results
            ]
        )

    def _make(self, key: Hashable, make: Callable[[], Made]) -> Answer:
        at, mark = self._clock.monotonic(), self._cache.mark()
        made = make()
        if not made.fresh_s:
            return made.answer
        size = OVERHEAD_BYTES + len(repr(key)) + sum(map(_size, made.results))
        # None may drive out most of the others.
        if size <= self._max_bytes // 4:
            self._kept[key] = _Kept(made, at, mark, size)
        # Its parts may have come out of a cache of their own, and it says so then.
        return made.answer if made.answer.header("x-cache") else made.answer.with_headers(("X-Cache", "MISS"))


def _size(part: Result) -> int:
    return len(part.data or b"") + sum(len(name) + len(value) + 150 for name, value in part.headers)
