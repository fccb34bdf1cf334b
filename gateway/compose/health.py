"""The fleet's health, open to all: which services have live instances, as Consul says and as they say themselves.

healthy (200): every service that should be there has a live instance. degraded (503): one of them has none. Those are the
declared ones, and each that stands in the catalog with a route: a service that leaves on purpose is not missed. An instance is
live when Consul lets it take traffic and it says itself, within the time limit, that it is ready. No addresses, no ids.
"""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import gevent
import structlog
from gevent.pool import Pool
from pydantic_core import to_json

from discovery.balancing.balancer import usable
from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.model import Instance, Route
from gateway.compose.config import Health
from gateway.errors import Refused
from gateway.model import Answer, Incoming
from gateway.routes import Exposed
from services.kit.web.context import current

log = structlog.get_logger(__name__)

METHODS = ("GET", "HEAD")
AT_ONCE = 16
# Of a large fleet a sample is asked; for the rest Consul's own check, every 2 s, has to do.
MAX_ASKED = 128


@dataclass(frozen=True, slots=True)
class _Service:
    """What stands in the catalog of a service that counts."""

    name: str
    route: Route | None
    instances: tuple[Instance, ...]
    candidates: tuple[Instance, ...]

    @property
    def answers_http(self) -> bool:
        return self.route is None or self.route.protocol == "http"

    def describe(self, live: int) -> dict[str, Any]:
        total = len(self.instances)
        status = "down" if live <= 0 else "healthy" if live == total else "degraded"
        return {"status": status, "instances": total, "live": max(0, live)}


class FleetHealth:
    """`GET /api/health`. Looks at most once in `remember_s`, however often it is asked. Thread-safe."""

    def __init__(self, declared: Health, view: Exposed, clock: Clock = SYSTEM_CLOCK) -> None:
        self._declared = declared
        self._view = view
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[int, bytes] = (503, b"")
        self._until = float("-inf")
        self._was = ""

    def answer(self, incoming: Incoming) -> Answer:
        """200 when healthy, 503 when degraded. Raises Refused for another method."""
        current().route = incoming.path
        if incoming.method not in METHODS:
            raise Refused(405, "This path takes GET, HEAD.", headers=[("Allow", "GET, HEAD")])
        # Requests that come during a look wait for what it finds; it has a time limit.
        if self._clock.monotonic() >= self._until:
            with self._lock:
                if self._clock.monotonic() >= self._until:
                    self._known = self._look()
                    self._until = self._clock.monotonic() + self._declared.remember_s
        status, body = self._known
        headers = [
            ("Content-Type", "application/json"),
            ("Cache-Control", "no-store"),
            ("Content-Length", str(len(body))),
        ]
        if status == 503:
            headers.append(("Retry-After", "2"))
        return Answer(status, headers, b"" if incoming.method == "HEAD" else body)

    def _look(self) -> tuple[int, bytes]:
        services = self._services()
        live = self._live(services)
        described = {each.name: each.describe(live[each.name]) for each in services}
        down = sorted(name for name, each in described.items() if each["status"] == "down")
        status = "degraded" if down else "healthy"
        if status != self._was:
            self._was = status
            log.info("fleet health", status=status, down=down)
        body: dict[str, Any] = {"status": status, "services": described}
        if not self._view.healthy:
            age_s = self._view.age_s()
            body["catalog_age_s"] = round(age_s, 1) if age_s != float("inf") else None
        return (503 if down else 200), to_json(body) + b"\n"

    def _services(self) -> list[_Service]:
        """The services that should be there, by name: declared, or in the catalog with a route."""
        snapshot = self._view.snapshot()
        routes = {name: self._view.route(name) for name in snapshot.services}
        names = {*self._declared.expected, *(name for name, route in routes.items() if route is not None)}
        found = []
        for name in sorted(names):
            instances = snapshot.instances(name)
            found.append(_Service(name, routes.get(name), instances, tuple(usable(instances))))
        return found

    def _live(self, services: Sequence[_Service]) -> Counter[str]:
        """How many instances of each service are live. Those there was no time or room to ask count as Consul has them."""
        live = Counter({each.name: len(each.candidates) for each in services})
        pool = Pool(AT_ONCE)

        def ask(service: _Service, instance: Instance) -> None:
            live[service.name] -= 1
            with gevent.Timeout(self._declared.timeout_s, False):
                if _ready(service, instance, self._declared.timeout_s):
                    live[service.name] += 1

        with gevent.Timeout(self._declared.timeout_s * 2, False):
            for service, instance in islice(_in_turn(services), MAX_ASKED):
                pool.spawn(ask, service, instance)
            pool.join()
        pool.kill(block=False)
        return live


def _in_turn(services: Sequence[_Service]) -> Iterator[tuple[_Service, Instance]]:
    """The first instance of every service, then the second: of a fleet too large to be asked, some of each."""
    asked = [each for each in services if each.answers_http]
    for turn in range(max((len(each.candidates) for each in asked), default=0)):
        for each in asked:
            if turn < len(each.candidates):
                yield each, each.candidates[turn]


def _ready(service: _Service, instance: Instance, timeout_s: float) -> bool:
    """Whether the instance itself says that it may take traffic, and that it is of this service."""
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
