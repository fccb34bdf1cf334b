"""Leave to send: so many calls at once to each upstream, and so many in all. Who finds no room is refused at once.

The limit of an upstream adapts (see `gateway.limits.concurrency`), the group's does not: it is what one process can hold. A part of
the group's is for priority calls alone. A call counts until the head of its answer is there; what is left of a stream counts
against bounds of its own, so that long ones are no latency and take no call's place.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from gateway.errors import Overloaded
from gateway.limits.concurrency import AdaptiveLimit, ConcurrencySettings

log = structlog.get_logger(__name__)

# Whole seconds, as the header has them: from 1 to 3, by chance, so that the refused do not come back in step.
RETRY_SPREAD_S = 3
# Services come and go; what is remembered of those that are idle is dropped beyond this.
MAX_UPSTREAMS = 1000
# Refusals of a service are logged as they begin, once in this time while they last, and when there were none for as long.
QUIET_S = 10.0

GROUP = "group"
UPSTREAM = "upstream"
# Scopes of refusals, as the metric has them.
SCOPES = (GROUP, UPSTREAM, "group_streams", "upstream_streams")


@dataclass(frozen=True, slots=True)
class ShedSettings:
    """`group` calls at once in this process, of which the share `reserved` is for priority calls alone; `streams` bodies being
    passed on at once, `upstream_streams` of one service."""

    group: int = 512
    reserved: float = 0.2
    streams: int = 512
    upstream_streams: int = 256
    upstream: ConcurrencySettings = field(default_factory=ConcurrencySettings)


class _Refusals:
    """Those of one service, from the first until there were none for `QUIET_S`. Answers the fields of a log line that is due."""

    __slots__ = ("_began", "_last", "_number", "_said")

    def __init__(self) -> None:
        self._number = 0
        self._began = self._last = self._said = 0.0

    def add(self, now: float) -> dict[str, float] | None:
        first = not self._number
        self._number += 1
        self._last = now
        if first:
            self._began = now
        elif now - self._said < QUIET_S:
            return None
        self._said = now
        return {"refused": self._number, "for_s": round(now - self._began, 1)}

    def end(self, now: float) -> dict[str, float] | None:
        """Once they are over, for the first call after that."""
        if not self._number or now - self._last < QUIET_S:
            return None
        number, self._number = self._number, 0
        return {"refused": number, "for_s": round(self._last - self._began, 1)}


class _Upstream:
    """What is under way to one service."""

    __slots__ = ("limit", "refusals", "service", "streams")

    def __init__(self, service: str, limit: AdaptiveLimit) -> None:
        self.service = service
        self.limit = limit
        self.streams = 0
        self.refusals = _Refusals()


class _Room:
    """A number of places, some of them for priority alone."""

    __slots__ = ("ordinary", "places", "taken", "taken_ordinary")

    def __init__(self, places: int, reserved: float) -> None:
        self.places = places
        self.ordinary = max(1, places - int(places * reserved))
        self.taken = 0
        self.taken_ordinary = 0

    def full(self, priority: bool) -> bool:
        return self.taken >= self.places or (not priority and self.taken_ordinary >= self.ordinary)

    def add(self, priority: bool, change: int) -> None:
        self.taken += change
        if not priority:
            self.taken_ordinary += change


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """One service now. `base_s` is None until it is known."""

    service: str
    limit: int
    in_flight: int
    streams: int
    base_s: float | None


class Ticket:
    """Leave to make one call. `head` when the head of its answer is there, `leave` when all of it is over; more do nothing.

    `ok`: whether the upstream answered as one that works. As a context manager it leaves with whether nothing was raised.
    """

    __slots__ = ("_began", "_priority", "_probe", "_shed", "_stage", "_upstream")

    def __init__(self, shed: Shed, upstream: _Upstream, priority: bool, began: float) -> None:
        self._shed = shed
        self._upstream = upstream
        self._priority = priority
        self._began = began
        self._probe = upstream.limit.probe
        self._stage = 0

    def head(self, ok: bool = True) -> None:
        """The head is there, its body is a stream. Raises Overloaded where there is no place for one more: the call is over."""
        self._shed._head(self, ok)

    def leave(self, ok: bool | None = True) -> None:
        """It is over: answered, failed, or (None) given up by its caller, which says nothing about the upstream."""
        if self._stage != 2:
            self._shed._leave(self, ok)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(kind is None)

    def __del__(self) -> None:
        # Whoever forgets it must not take a place away for good.
        if self._stage != 2:
            self.leave(False)


class Shed:
    """Gives out the tickets of one process. Thread-safe, and under gevent; holds its lock for arithmetic only."""

    def __init__(self, settings: ShedSettings | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings or ShedSettings()
        self._clock = clock
        # Reentrant: a ticket may be collected, and so leave, while the lock is held.
        self._lock = threading.RLock()
        self._upstreams: dict[str, _Upstream] = {}
        self._calls = _Room(self._settings.group, self._settings.reserved)
        self._streams = _Room(self._settings.streams, self._settings.reserved)
        self._refused: Counter[tuple[str, str]] = Counter()

    def enter(self, service: str, *, priority: bool) -> Ticket:
        """Leave to make one call to the service now. Raises Overloaded."""
        now = self._clock.monotonic()
        with self._lock:
            upstream = self._upstreams.get(service) or self._add(service)
            over = upstream.refusals.end(now)
            scope = GROUP if self._calls.full(priority) else None
            if scope is None and not upstream.limit.enter(now):
                scope = UPSTREAM
            if scope is None:
                self._calls.add(priority, 1)
                ticket = Ticket(self, upstream, priority, now)
        if over is not None:
            log.info("shedding over", service=service, **over)
        if scope is None:
            return ticket
        raise self._refusal(upstream, scope, now, sent=False)

    def _refusal(self, upstream: _Upstream, scope: str, now: float, *, sent: bool) -> Overloaded:
        service = upstream.service
        with self._lock:
            self._refused[service, scope] += 1
            going_on = upstream.refusals.add(now)
            limit, in_flight = upstream.limit.limit, self._calls.taken
        if going_on is not None:
            log.warning(
                "shedding", service=service, scope=scope, limit=limit, in_flight=in_flight, **going_on
            )
        after_s = 1 + int(self._clock.random() * RETRY_SPREAD_S)
        kind = GROUP if scope.startswith(GROUP) else UPSTREAM
        return Overloaded(service, kind, retry_after_s=after_s, sent=sent)

    def _add(self, service: str) -> _Upstream:
        if len(self._upstreams) >= MAX_UPSTREAMS:
            idle = [
                name for name, each in self._upstreams.items() if not (each.limit.in_flight or each.streams)
            ]
            for name in idle:
                del self._upstreams[name]
        added = _Upstream(service, AdaptiveLimit(self._settings.upstream, self._clock))
        self._upstreams[service] = added
        return added

    def _head(self, ticket: Ticket, ok: bool) -> None:
        now, upstream = self._clock.monotonic(), ticket._upstream
        with self._lock:
            if ticket._stage:
                return
            upstream.limit.leave(ticket._began, ticket._probe, now, ok=ok)
            self._calls.add(ticket._priority, -1)
            scope = "group_streams" if self._streams.full(ticket._priority) else None
            if scope is None and upstream.streams >= self._settings.upstream_streams:
                scope = "upstream_streams"
            ticket._stage = 1 if scope is None else 2
            if scope is None:
                upstream.streams += 1
                self._streams.add(ticket._priority, 1)
        if scope is not None:
            raise self._refusal(upstream, scope, now, sent=True)

    def _leave(self, ticket: Ticket, ok: bool | None) -> None:
        now = self._clock.monotonic()
        with self._lock:
            stage, ticket._stage = ticket._stage, 2
            if stage == 0:
                ticket._upstream.limit.leave(ticket._began, ticket._probe, now, ok=ok)
                self._calls.add(ticket._priority, -1)
            elif stage == 1:
                ticket._upstream.streams -= 1
                self._streams.add(ticket._priority, -1)

    # -- for metrics

    @property
    def settings(self) -> ShedSettings:
        return self._settings

    def states(self) -> Iterator[UpstreamState]:
        """Every service called so far."""
        for name, each in list(self._upstreams.items()):
            yield UpstreamState(name, each.limit.limit, each.limit.in_flight, each.streams, each.limit.base_s)

    def in_flight(self) -> tuple[int, int]:
        """Calls waiting for their head in this process: (with priority, without)."""
        return self._calls.taken - self._calls.taken_ordinary, self._calls.taken_ordinary

    def streams(self) -> int:
        """Bodies being passed on in this process."""
        return self._streams.taken

    def refused(self) -> dict[tuple[str, str], int]:
        """(service, scope) → how many calls were refused since the start."""
        return dict(self._refused)
