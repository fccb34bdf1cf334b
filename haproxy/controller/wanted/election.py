"""What Consul asks of the edge, checked: a snapshot becomes routes, servers and the reasons of what was refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from discovery.admission.resolver import Resolver
from discovery.admission.rules import Admission, Admissions, Admitted, Rejection
from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.contract import Policy
from discovery.model import Instance, Route
from haproxy.controller.config.model import Backend, EdgeState, Server, VerifyKey
from haproxy.controller.wanted.ownership import Claim, OwnerBook, Refusal


@dataclass(frozen=True, slots=True)
class Election:
    """One service by itself, before ownership is settled.

    `route` is what most of its instances ask for, None when they ask for none or for nothing valid (`valid` tells which).
    `servers` may serve now, sorted by name; `ordered_out` are names of those in maintenance.
    """

    service: str
    route: Route | None = None
    valid: bool = True
    order: int = 0
    servers: tuple[Server, ...] = ()
    ordered_out: frozenset[str] = frozenset()
    rejections: tuple[Rejection, ...] = ()


def elect(admission: Admission) -> Election:
    """The servers of a service that may serve now: of the instances that are admitted, those that Consul calls fit."""
    route = admission.route
    admitted = [each for each in admission.admitted if each.direct] if route is not None else []
    servers = (_server(each) for each in admitted if _serves(each.instance, route))
    return Election(
        service=admission.service,
        route=route,
        valid=admission.valid,
        order=admission.order,
        servers=tuple(sorted(servers, key=lambda server: server.name)),
        ordered_out=frozenset(each.name for each in admitted if each.instance.maintenance),
        rejections=admission.rejections,
    )


def _server(admitted: Admitted) -> Server:
    at = admitted.placement
    return Server(admitted.name, at.address, at.port, at.weight, at.backup)


def _serves(instance: Instance, route: Route | None) -> bool:
    if route is None or instance.maintenance or instance.status == "critical":
        return False
    return instance.status == "passing" or route.warning == "serve"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything to be reported about one service. `route` is None when nothing of it is exposed.

    `pending`: what it waits for where HAProxy does not have the route yet; empty where it has.
    """

    election: Election
    route: Route | None
    refused: tuple[Refusal, ...] = ()
    pending: str = ""


class Desire:
    """The desired state, brought up to date service by service. Not thread-safe; no I/O but the book's.

    The cost of an update is that of the services in it, and of all claims only when one of them has changed.
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
        self._elections: dict[str, Election] = {}
        self._refused: Mapping[str, tuple[Refusal, ...]] = {}
        self._backends: dict[str, Backend] = {}
        self.serving = 0

    def update(self, services: Mapping[str, Sequence[Instance]], now: float) -> bool:
        """Take in the services that changed (no instances: gone), and with them their `neighbours`. Answers whether the
        claims were settled anew, in which case any route may be another. `now` in Unix seconds."""
        settle = False
        self._admissions.update(services, self._clock.monotonic())
        for service in services:
            before = self._elections.pop(service, None)
            self._backends.pop(service, None)
            admission = self._admissions.by_service.get(service)
            after = elect(admission) if admission is not None else None
            if after is not None:
                self._elections[service] = after
            self.serving += len(after.servers if after else ()) - len(before.servers if before else ())
            settle |= _asks(before) != _asks(after)
        if settle:
            self.settle(now)
        return settle

    def neighbours(self, services: Mapping[str, Sequence[Instance]]) -> set[str]:
        """Other services of which something may change when these do."""
        return self._admissions.neighbours(services)

    def released(self) -> set[str]:
        """Services to be updated because of the time alone."""
        return self._admissions.release(self._clock.monotonic())

    def settle(self, now: float) -> bool:
        """Give out all prefixes anew: claims, pins or the time have changed. Answers whether any service has others now."""
        before = self._book.memories, self._refused
        routes = {name: e.route for name, e in self._elections.items() if e.route is not None}
        claims = {
            name: Claim(name, route.paths, self._elections[name].order) for name, route in routes.items()
        }
        away = frozenset(name for name, election in self._elections.items() if not election.valid)
        self._refused = self._book.settle(claims, routes, away, now).refused
        self._backends.clear()
        return before != (self._book.memories, self._refused)

    def services(self) -> frozenset[str]:
        """All that are in Consul or remembered."""
        return frozenset(self._elections) | frozenset(self._book.memories)

    def present(self) -> frozenset[str]:
        """All that are in Consul."""
        return frozenset(self._elections)

    def routes(self) -> dict[str, Route]:
        """Every accepted route by service, those of services that have gone among them."""
        return {name: memory.route for name, memory in self._book.memories.items()}

    def servers(self, service: str) -> dict[str, Server]:
        """The servers of a service that may serve now, by name; also where its route is not accepted."""
        election = self._elections.get(service)
        return {server.name: server for server in election.servers} if election else {}

    def ordered_out(self, service: str) -> frozenset[str]:
        """Names of instances that are in maintenance, by order."""
        election = self._elections.get(service)
        return election.ordered_out if election else frozenset()

    def backend(self, service: str, held: Mapping[str, Server] | None = None) -> Backend | None:
        """The backend of an accepted route, with `held` servers (those of the guard) beside its own."""
        memory = self._book.memories.get(service)
        if memory is None:
            return None
        if held:
            servers = {**held, **self.servers(service)}
            return Backend(memory.route, tuple(servers[name] for name in sorted(servers)))
        if service not in self._backends:
            election = self._elections.get(service)
            self._backends[service] = Backend(memory.route, election.servers if election else ())
        return self._backends[service]

    def state(self, keys: tuple[VerifyKey, ...], held: Mapping[str, Mapping[str, Server]]) -> EdgeState:
        """All of it, as the file is rendered from."""
        names = sorted(self._book.memories)
        backends = (self.backend(name, held.get(name)) for name in names)
        return EdgeState(tuple(backend for backend in backends if backend is not None), keys)

    def outcome(self, service: str) -> Outcome | None:
        """What its owner should learn; None for a service that is not in Consul."""
        election = self._elections.get(service)
        if election is None:
            return None
        memory = self._book.memories.get(service)
        return Outcome(election, memory.route if memory else None, self._refused.get(service, ()))


def _asks(election: Election | None) -> tuple[Route | None, bool] | None:
    return None if election is None else (election.route, election.valid)
