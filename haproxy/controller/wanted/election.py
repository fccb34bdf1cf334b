"""What Consul asks of the edge, checked: a snapshot becomes routes, servers and the reasons of what was refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.admission.resolver import Resolver
from discovery.admission.rules import Admission, Admissions
from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.contract import Policy
from discovery.model import Instance, Route
from haproxy.controller.config.model import Backend, EdgeState, Server, VerifyKey
from haproxy.controller.wanted.ownership import Claim, OwnerBook, Refusal


def servers_of(admission: Admission) -> tuple[Server, ...]:
    """The servers of a service that may serve now, by name: of the instances that are admitted, those that Consul calls fit."""
    route = admission.route
    if route is None:
        return ()
    servers = [
        Server(
            each.name,
            each.placement.address,
            each.placement.port,
            each.placement.weight,
            each.placement.backup,
        )
        for each in admission.admitted
        if each.direct and _is_fit(each.instance, route)
    ]
    return tuple(sorted(servers, key=lambda server: server.name))


def _is_fit(instance: Instance, route: Route) -> bool:
    if instance.maintenance or instance.status == "critical":
        return False
    return instance.status == "passing" or route.warning == "serve"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything to be reported about one service. `route` is None when nothing of it is exposed.

    `pending`: what it waits for where HAProxy does not have the route yet; empty where it has.
    """

    admission: Admission
    route: Route | None
    refused: tuple[Refusal, ...] = ()
    pending: str = ""


class Desire:
    """The desired state, brought up to date service by service. Not thread-safe; no I/O.

    The cost of an update is that of the services in it; `settle`, which gives out all prefixes, is due when it says so.
    """

    def __init__(
        self,
        policy: Policy,
        book: OwnerBook,
        clock: Clock = SYSTEM_CLOCK,
        resolver: Resolver | None = None,
    ) -> None:
        self._book = book
        self._clock = clock
        self._admissions = Admissions(policy, resolver)
        self._servers: dict[str, tuple[Server, ...]] = {}
        self._refused: Mapping[str, tuple[Refusal, ...]] = {}
        self.serving = 0

    def update(self, services: Mapping[str, Sequence[Instance]]) -> bool:
        """Take in the services that changed (no instances: gone), and with them their `neighbours`. Returns whether they
        claim something else now: then `settle`."""
        before = {service: self._claim(service) for service in services}
        self._admissions.update(services, self._clock.monotonic())
        for service in services:
            self.serving -= len(self._servers.pop(service, ()))
            admission = self._admissions.by_service.get(service)
            if admission is not None:
                self._servers[service] = servers_of(admission)
                self.serving += len(self._servers[service])
        return any(claim != self._claim(service) for service, claim in before.items())

    def _claim(self, service: str) -> tuple[Route | None, bool] | None:
        admission = self._admissions.by_service.get(service)
        return (admission.route, admission.valid) if admission is not None else None

    def neighbours(self, services: Mapping[str, Sequence[Instance]]) -> set[str]:
        """Other services of which something may change when these do."""
        return self._admissions.neighbours(services)

    def released(self) -> set[str]:
        """Services to be updated because of the time alone."""
        return self._admissions.release(self._clock.monotonic())

    def settle(self) -> bool:
        """Give out all prefixes: claims, pins or the time have changed. Returns whether any service's prefixes have changed."""
        before = self._book.memories, self._refused
        admissions = self._admissions.by_service
        routes = {name: each.route for name, each in admissions.items() if each.route is not None}
        claims = {name: Claim(name, route.paths, admissions[name].order) for name, route in routes.items()}
        away = frozenset(name for name, each in admissions.items() if not each.valid)
        self._refused = self._book.settle(claims, routes, away, self._clock.time()).refused
        return before != (self._book.memories, self._refused)

    def present(self) -> frozenset[str]:
        """All that are in Consul."""
        return frozenset(self._admissions.by_service)

    def routes(self) -> dict[str, Route]:
        """Every accepted route by service, those of services that have gone among them."""
        return {name: memory.route for name, memory in self._book.memories.items()}

    def servers(self, service: str) -> dict[str, Server]:
        """The servers of a service that may serve now, by name; also where its route is not accepted."""
        return {server.name: server for server in self._servers.get(service, ())}

    def ordered_out(self, service: str) -> frozenset[str]:
        """Names of instances that are in maintenance, by order."""
        admission = self._admissions.by_service.get(service)
        admitted = admission.admitted if admission is not None and admission.route is not None else ()
        return frozenset(each.name for each in admitted if each.direct and each.instance.maintenance)

    def backend(self, service: str, held: Mapping[str, Server] | None = None) -> Backend | None:
        """The backend of an accepted route, with `held` servers (those of the guard) beside its own."""
        memory = self._book.memories.get(service)
        if memory is None:
            return None
        servers = {**(held or {}), **self.servers(service)}
        return Backend(memory.route, tuple(servers[name] for name in sorted(servers)))

    def state(self, keys: tuple[VerifyKey, ...], held: Mapping[str, Mapping[str, Server]]) -> EdgeState:
        """All of it, as the file is rendered from."""
        names = sorted(self._book.memories)
        backends = (self.backend(name, held.get(name)) for name in names)
        return EdgeState(tuple(backend for backend in backends if backend is not None), keys)

    def outcome(self, service: str) -> Outcome | None:
        """The verdict for its owner; None for a service that is not in Consul."""
        admission = self._admissions.by_service.get(service)
        if admission is None:
            return None
        memory = self._book.memories.get(service)
        return Outcome(admission, memory.route if memory else None, self._refused.get(service, ()))
