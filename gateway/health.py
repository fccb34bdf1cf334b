"""The fleet's health for everybody: which services have live instances, as Consul says and as they say themselves.

healthy (200): every service that should be there has a live instance. degraded (503): one of them has none. Those are the
declared ones, and each that stands in the catalog with a route: who leaves on purpose is not missed. An instance is live when
Consul lets it take traffic and it says itself, within the time limit, that it is ready. No addresses, no ids.
"""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gevent
import structlog
from gevent.pool import Pool
from pydantic_core import to_json

from discovery.balancing.balancer import usable
from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul.static import Reading
from discovery.contract import parse_route
from discovery.errors import ContractError
from discovery.model import Instance, Route
from gateway.errors import Refused
from gateway.model import Answer, Incoming
from services.kit.web.context import current

log = structlog.get_logger(__name__)

METHODS = ("GET", "HEAD")
AT_ONCE = 16
# Of a large fleet a sample is asked; for the rest Consul's own check, every 2 s, has to do.
MAX_ASKED = 128


class Declared(Protocol):
    """What a domain's file says about it; times in seconds."""

    @property
    def expected(self) -> tuple[str, ...]: ...

    @property
    def timeout_s(self) -> float: ...

    @property
    def remember_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class _Service:
    """What stands in the catalog of a service that counts."""

    name: str
    route: Route | None
    instances: tuple[Instance, ...]
    candidates: tuple[Instance, ...]


class FleetHealth:
    """`GET /api/health`. Looks at most once in `remember_s`, however often it is asked. Thread-safe."""

    def __init__(self, declared: Declared, view: Reading, clock: Clock = SYSTEM_CLOCK) -> None:
        self._declared = declared
        self._view = view
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[int, bytes] | None = None
        self._until = float("-inf")
        self._was: str | None = None

    def answer(self, incoming: Incoming) -> Answer:
        """200 when healthy, 503 when degraded. Raises Refused for another method."""
        current().route = incoming.path
        if incoming.method not in METHODS:
            raise Refused(405, "This path takes GET, HEAD.", headers=[("Allow", "GET, HEAD")])
        status, body = self._current()
        headers = [
            ("Content-Type", "application/json"),
            ("Cache-Control", "no-store"),
            ("Content-Length", str(len(body))),
        ]
        if status == 503:
            headers.append(("Retry-After", "2"))
        return Answer(status, headers, b"" if incoming.method == "HEAD" else body)

    def _current(self) -> tuple[int, bytes]:
        known = self._known
        if known is not None and self._clock.monotonic() < self._until:
            return known
        # Whoever comes while one looks waits for what he sees; a look has a time limit.
        with self._lock:
            if self._known is None or self._clock.monotonic() >= self._until:
                self._known = self._look()
                self._until = self._clock.monotonic() + self._declared.remember_s
            return self._known

    def _look(self) -> tuple[int, bytes]:
        services = self._services()
        live = self._live(services)
        told = {each.name: _told(each, live[each.name]) for each in services}
        down = sorted(name for name, each in told.items() if each["status"] == "down")
        status = "degraded" if down else "healthy"
        if status != self._was:
            self._was = status
            log.info("fleet health", status=status, down=down)
        body: dict[str, Any] = {"status": status, "services": told}
        if not self._view.healthy:
            body["catalog_age_s"] = _rounded(self._view.age_s())
        return (503 if down else 200), to_json(body) + b"\n"

    def _services(self) -> list[_Service]:
        """The services that should be there, by name: declared, or in the catalog with a route."""
        snapshot = self._view.snapshot()
        names = {*self._declared.expected}
        names.update(name for name, instances in snapshot.services.items() if instances and _route(instances))
        found = []
        for name in sorted(names):
            instances = snapshot.instances(name)
            found.append(_Service(name, _route(instances), instances, tuple(usable(instances))))
        return found

    def _live(self, services: Sequence[_Service]) -> Counter[str]:
        """How many instances of each service are live. Those there was no time or room to ask count as Consul has them."""
        live = Counter({each.name: len(each.candidates) for each in services})
        asked = [(each, one) for each in services for one in each.candidates if _answers_http(each.route)]
        pool = Pool(AT_ONCE)
        left = asked[:MAX_ASKED] if len(asked) <= MAX_ASKED else self._sample(services)

        def ask(service: _Service, instance: Instance) -> None:
            live[service.name] -= 1
            if self._ready(service, instance):
                live[service.name] += 1

        timer = gevent.Timeout(self._declared.timeout_s * 2, False)
        with timer:
            for service, instance in left:
                pool.spawn(ask, service, instance)
            pool.join()
        pool.kill(block=False)
        return live

    def _sample(self, services: Sequence[_Service]) -> list[tuple[_Service, Instance]]:
        """The first instances of every service in turn, until there are enough."""
        turns = max(len(each.candidates) for each in services)
        pairs = (
            (each, each.candidates[turn])
            for turn in range(turns)
            for each in services
            if turn < len(each.candidates) and _answers_http(each.route)
        )
        return [pair for pair, _ in zip(pairs, range(MAX_ASKED), strict=False)]

    def _ready(self, service: _Service, instance: Instance) -> bool:
        """Whether the instance itself says, in time, that it may take traffic."""
        with gevent.Timeout(self._declared.timeout_s, False):
            return _ask(service, instance, self._declared.timeout_s)
        return False


def _ask(service: _Service, instance: Instance, timeout_s: float) -> bool:
    path = service.route.check if service.route is not None else "/health/ready"
    connection = http.client.HTTPConnection(instance.address, instance.port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            return False
        named = service.route is None or service.route.check_identity
        return not named or answer.getheader("X-Service") == service.name
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _route(instances: Sequence[Instance]) -> Route | None:
    for instance in instances:
        try:
            return parse_route(instance.service, instance.meta)
        except ContractError:
            continue
    return None


def _answers_http(route: Route | None) -> bool:
    return route is None or route.protocol == "http"


def _told(service: _Service, live: int) -> dict[str, Any]:
    total = len(service.instances)
    status = "down" if live <= 0 else "healthy" if live == total else "degraded"
    return {"status": status, "instances": total, "live": max(0, live)}


def _rounded(seconds: float) -> float | None:
    return round(seconds, 1) if seconds != float("inf") else None
