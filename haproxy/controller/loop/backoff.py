"""When the next reload is due: soon for a route that changes now and then, later and later for one that never rests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from discovery.model import Route
from haproxy.controller.config.model import VerifyKey

log = structlog.get_logger(__name__)

RELOAD_EVERY_S = 1.0
# A deployment changes its route a few times; from the next one on each waits twice as long as the one before.
FREE_CHANGES = 5
MOST_S = 15.0
# Quiet for this long, a service begins anew.
FORGET_S = 120.0


@dataclass(slots=True)
class _Record:
    """How often one service has made the edge reload lately, and when it did last."""

    reloads: int
    at: float

    def wait_s(self) -> float:
        over = self.reloads - FREE_CHANGES
        return min(float(2**over), MOST_S) if over > 0 else 0.0


@dataclass(slots=True)
class Patience:
    """What the worker has been loaded with, and how long the rest may wait. Times are monotonic seconds.

    A service that flaps its route waits alone: the change of another one brings its own along.
    """

    _routes: Mapping[str, Route] | None = None
    _keys: tuple[VerifyKey, ...] = ()
    _hurry: bool = False
    _tried_at: float = float("-inf")
    _records: dict[str, _Record] = field(default_factory=dict)
    _told: dict[str, int] = field(default_factory=dict)

    def in_step(self, routes: Mapping[str, Route], keys: tuple[VerifyKey, ...]) -> None:
        """The worker has these."""
        self._routes, self._keys, self._hurry = dict(routes), keys, False

    def unknown(self) -> None:
        """Nobody can tell what the worker has: what is missing must not wait."""
        self._routes = None

    def hurry(self) -> None:
        """Nor must it until the next reload: an operator has spoken."""
        self._hurry = True

    def tried(self, now: float) -> None:
        """A reload begins."""
        self._tried_at = now

    def reloaded(self, routes: Mapping[str, Route], keys: tuple[VerifyKey, ...], now: float) -> None:
        """It came up, with these."""
        for service in self.changed(routes):
            record = self._records.get(service)
            if record is None or now - record.at > FORGET_S:
                record = self._records[service] = _Record(0, now)
            record.reloads, record.at = record.reloads + 1, now
        # What is forgotten needs no room: names come from outside.
        self._records = {name: r for name, r in self._records.items() if now - r.at <= FORGET_S}
        self.in_step(routes, keys)

    def due(self, routes: Mapping[str, Route], keys: tuple[VerifyKey, ...]) -> float:
        """When a reload may bring these: as soon as one of the services that changed need not wait."""
        soonest = self._tried_at + RELOAD_EVERY_S
        if self._hurry or self._routes is None or keys != self._keys:
            return soonest
        times = {service: self._due_of(service) for service in self.changed(routes)}
        if not times or min(times.values()) <= soonest:
            return soonest
        self._tell(times)
        return min(times.values())

    def _due_of(self, service: str) -> float:
        record = self._records.get(service)
        return record.at + record.wait_s() if record is not None else float("-inf")

    def changed(self, routes: Mapping[str, Route]) -> frozenset[str]:
        """The services of which the worker has another route, or none; nobody where that is not known."""
        if self._routes is None:
            return frozenset()
        known = self._routes
        return frozenset(name for name in {*known, *routes} if known.get(name) != routes.get(name))

    def _tell(self, times: Mapping[str, float]) -> None:
        """Once for each reload that a service had: it may ask many times while it waits."""
        for service in times:
            record = self._records[service]
            if self._told.get(service) != record.reloads:
                log.warning(
                    "route changes too often, its reload waits", service=service, wait_s=record.wait_s()
                )
        self._told = {name: r.reloads for name, r in self._records.items() if name in {*times, *self._told}}
