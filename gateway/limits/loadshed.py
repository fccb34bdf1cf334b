"""Permission to send: a bounded number of calls at once to each upstream, and in all. A call that finds no room is refused at once.

The limit of an upstream adapts (see `gateway.limits.concurrency`), the group's does not: it is what one process can hold. A part of
the group's is for priority calls alone. A call counts until the head of its answer is there; what is left of a stream counts
against bounds of its own, so that long ones are no latency and take no call's place.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from ipaddress import IPv6Address

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

# What is full; the metric knows `group_streams` and `upstream_streams` besides.
GROUP = "group"
UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class ShedSettings:
    """`group` calls at once in this process, of which the share `reserved` is for priority calls alone; `streams` bodies being
    passed on at once, `upstream_streams` of one service."""

    group: int = 512
    reserved: float = 0.2
    streams: int = 512
    upstream_streams: int = 256
    upstream: ConcurrencySettings = field(default_factory=ConcurrencySettings)


class Upstream(AdaptiveLimit):
    """What is under way to one service, and its refusals from the first until there were none for `QUIET_S`."""

    def __init__(self, service: str, settings: ConcurrencySettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        self.service = service
        self.streams = 0
        self._refused = 0
        self._began = self._last = self._logged = 0.0

    def refuse(self, now: float) -> dict[str, object] | None:
        """Count a refusal; returns the fields of a log line where one is due."""
        if not self._refused:
            self._began, self._logged = now, now - QUIET_S
        self._refused += 1
        self._last = now
        if now - self._logged < QUIET_S:
            return None
        self._logged = now
        return self._fields()

    def calm(self, now: float) -> dict[str, object] | None:
        """The same once refusals are over, for the first call after that."""
        if not self._refused or now - self._last < QUIET_S:
            return None
        fields, self._refused = self._fields(), 0
        return fields

    def _fields(self) -> dict[str, object]:
        lasted_s = round(self._last - self._began, 1)
        return {"service": self.service, "refused": self._refused, "for_s": lasted_s}


class _Room:
    """A number of places, some of them for priority alone."""

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


class Ticket:
    """Permission to make one call. `head` when the head of its answer is there, `leave` when all of it is over; more do nothing.

    `ok`: whether the upstream answered as one that works.
    """

    __slots__ = ("_shed", "began", "priority", "probe", "stage", "upstream")

    def __init__(self, shed: Shed, upstream: Upstream, priority: bool, began: float) -> None:
        self._shed = shed
        self.upstream = upstream
        self.priority = priority
        self.began = began
        self.probe = upstream.probe
        self.stage = "call"

    def head(self, ok: bool | None = True) -> None:
        """The head is there, its body is a stream; or (None) it is one already. Raises Overloaded where there is no place for one
        more: the call is over."""
        self._shed.begin_stream(self, ok)

    def leave(self, ok: bool | None = True) -> None:
        """It is over: answered, failed, or (None) given up by its caller, which says nothing about the upstream."""
        if self.stage != "over":
            self._shed.end(self, ok)

    def __del__(self) -> None:
        # A ticket that is forgotten must not take a place away for good.
        self.leave(False)


class Shed:
    """Gives out the tickets of one process. Thread-safe, and under gevent; holds its lock for arithmetic only."""

    def __init__(self, settings: ShedSettings | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self.settings = settings or ShedSettings()
        self._clock = clock
        # Reentrant: a ticket may be collected, and so leave, while the lock is held.
        self._lock = threading.RLock()
        self._upstreams: dict[str, Upstream] = {}
        self._calls = _Room(self.settings.group, self.settings.reserved)
        self._streams = _Room(self.settings.streams, self.settings.reserved)
        # (service, what was full) → calls refused since the start
        self.refused: Counter[tuple[str, str]] = Counter()

    def enter(self, service: str, *, priority: bool) -> Ticket:
        """Permission to make one call to the service now. Raises Overloaded."""
        now = self._clock.monotonic()
        with self._lock:
            upstream = self._upstreams.get(service) or self._add(service)
            over = upstream.calm(now)
            full = GROUP if self._calls.full(priority) else ""
            if not full and not upstream.enter(now):
                full = UPSTREAM
            if not full:
                self._calls.add(priority, 1)
                ticket = Ticket(self, upstream, priority, now)
        if over is not None:
            log.info("shedding over", **over)
        if full:
            raise self._refusal(upstream, full, now, sent=False)
        return ticket

    def begin_stream(self, ticket: Ticket, ok: bool | None) -> None:
        """See `Ticket.head`."""
        now, upstream = self._clock.monotonic(), ticket.upstream
        with self._lock:
            if ticket.stage != "call":
                return
            self._end_call(ticket, now, ok)
            full = "group_streams" if self._streams.full(ticket.priority) else ""
            if not full and upstream.streams >= self.settings.upstream_streams:
                full = "upstream_streams"
            if not full:
                ticket.stage = "stream"
                upstream.streams += 1
                self._streams.add(ticket.priority, 1)
        if full:
            raise self._refusal(upstream, full, now, sent=ok is not None)

    def end(self, ticket: Ticket, ok: bool | None) -> None:
        """See `Ticket.leave`."""
        with self._lock:
            if ticket.stage == "call":
                self._end_call(ticket, self._clock.monotonic(), ok)
            elif ticket.stage == "stream":
                ticket.stage = "over"
                ticket.upstream.streams -= 1
                self._streams.add(ticket.priority, -1)

    def _end_call(self, ticket: Ticket, now: float, ok: bool | None) -> None:
        ticket.stage = "over"
        ticket.upstream.leave(ticket.began, ticket.probe, now, ok=ok)
        self._calls.add(ticket.priority, -1)

    def _refusal(self, upstream: Upstream, full: str, now: float, *, sent: bool) -> Overloaded:
        with self._lock:
            self.refused[upstream.service, full] += 1
            due = upstream.refuse(now)
        if due is not None:
            log.warning("shedding", scope=full, limit=upstream.limit, in_flight=self._calls.taken, **due)
        after_s = 1 + int(self._clock.random() * RETRY_SPREAD_S)
        scope = GROUP if full.startswith(GROUP) else UPSTREAM
        return Overloaded(upstream.service, scope, retry_after_s=after_s, sent=sent)

    def _add(self, service: str) -> Upstream:
        if len(self._upstreams) >= MAX_UPSTREAMS:
            idle = [name for name, each in self._upstreams.items() if not (each.in_flight or each.streams)]
            for name in idle:
                del self._upstreams[name]
        added = self._upstreams[service] = Upstream(service, self.settings.upstream, self._clock)
        return added

    # -- for metrics

    def upstreams(self) -> Collection[Upstream]:
        """Every service called so far."""
        return list(self._upstreams.values())

    def in_flight(self) -> tuple[int, int]:
        """Calls waiting for their head in this process: (with priority, without)."""
        return self._calls.taken - self._calls.taken_ordinary, self._calls.taken_ordinary

    def streams(self) -> int:
        """Bodies being passed on in this process."""
        return self._streams.taken


class Place:
    """One of `Places`, held until `leave`, which may be called again."""

    __slots__ = ("_holder", "_places")

    def __init__(self, places: Places, holder: str) -> None:
        self._places: Places | None = places
        self._holder = holder

    def leave(self) -> None:
        places, self._places = self._places, None
        if places is not None:
            places.give_back(self._holder)


class Places:
    """Places that requests hold while something lasts: `most` at once (None: any number), `each` of one holder. Thread-safe."""

    def __init__(self, most: int | None, each: int) -> None:
        self._most = most
        self._each = each
        self._lock = threading.Lock()
        self.holders: dict[str, int] = {}
        self.taken = 0

    def take(self, holder: str) -> Place | None:
        """A place; None where the holder has too many, or all have."""
        with self._lock:
            held = self.holders.get(holder, 0)
            if held >= self._each or (self._most is not None and self.taken >= self._most):
                return None
            self.holders[holder] = held + 1
            self.taken += 1
        return Place(self, holder)

    def give_back(self, holder: str) -> None:
        """See `Place.leave`."""
        with self._lock:
            self.taken -= 1
            self.holders[holder] -= 1
            if not self.holders[holder]:
                del self.holders[holder]


def source(address: str) -> str:
    """The customer behind an address: of IPv6, one holds a /64."""
    if ":" not in address:
        return address
    try:
        return IPv6Address(int(IPv6Address(address.partition("%")[0])) >> 64 << 64).compressed
    except ValueError:
        return address
