"""What Consul asks of the edge, checked: a snapshot becomes routes, servers and the reasons of what was refused."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from discovery.contract import Policy, check_name, parse_placement, parse_route
from discovery.errors import ContractError
from discovery.model import Instance, Placement, Route
from haproxy.controller.model import Backend, EdgeState, Server, VerifyKey
from haproxy.controller.owners import Claim, OwnerBook, Refusal
from haproxy.controller.places import Place, Places, place_of


@dataclass(frozen=True, slots=True)
class Rejection:
    """One instance that the edge does not take as it asks. `field` names the metadata key or property at fault.

    `fatal` False: it is served, but something it asks for is not done.
    """

    instance: str
    field: str
    reason: str
    fatal: bool = True


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


# An instance, the route that it asks for, and where it may be reached (None where it asks for no route).
Asked = tuple[Instance, Route | None, Placement | None]


# Which service was first at an address and port.
Holder = Callable[[Place], str | None]


def elect(
    service: str, instances: Sequence[Instance], policy: Policy, holder: Holder = lambda _: None
) -> Election:
    """What a service asks for, by the majority of its instances; a tie goes to the newest (highest create index).

    An instance with a bad value is rejected alone. One that asks validly for another route than the majority is
    served by the majority's, and told so; one that asks for none is not exposed. Where the edge is not to check who
    answers, an instance must not live where another service was first (`holder`).
    """
    rejections: list[Rejection] = []
    asked: list[Asked] = []
    try:
        check_name(service)
    except ContractError as error:
        reasons = tuple(Rejection(i.id, "name", error.reason) for i in instances)
        return Election(service, valid=False, rejections=reasons)
    for instance in instances:
        try:
            # Whole before it votes: one that cannot serve has no say about the route.
            route = parse_route(service, instance.meta)
            asked.append((instance, route, parse_placement(instance, policy) if route else None))
        except ContractError as error:
            rejections.append(Rejection(instance.id, error.field, error.reason))
    route = _majority(asked)
    placed = []
    if route is not None:
        placed = _place(route, asked, rejections, holder)
    named = _name(placed)
    return Election(
        service=service,
        route=route,
        valid=bool(asked) or not instances,
        order=min((instance.create_index for instance, *_ in asked), default=0),
        servers=tuple(sorted((s for i, s in named if _serves(i, route)), key=lambda s: s.name)),
        ordered_out=frozenset(server.name for instance, server in named if instance.maintenance),
        rejections=tuple(rejections),
    )


def _majority(asked: Sequence[Asked]) -> Route | None:
    if not asked:
        return None
    votes = Counter(route for _, route, _ in asked)
    newest = {route: max(i.create_index for i, other, _ in asked if other == route) for route in votes}
    return max(votes, key=lambda route: (votes[route], newest[route]))


def _place(
    route: Route,
    asked: Iterable[Asked],
    rejections: list[Rejection],
    holder: Holder,
) -> list[tuple[Instance, Server]]:
    placed = []
    for instance, other, placement in asked:
        if other is None or placement is None:
            rejections.append(Rejection(instance.id, "edge-path", "asks for no route, unlike most instances"))
            continue
        # With the check, HAProxy sees for itself whose port it is, and no squatter can take an instance out.
        first = None if route.check_identity else holder(place_of(instance))
        if first not in (None, route.service):
            text = f"{instance.address}:{instance.port} is held by {first}, which had it first"
            rejections.append(Rejection(instance.id, "address", text))
            continue
        if other != route:
            text = "asks for another route than most instances of the service, which decides"
            rejections.append(Rejection(instance.id, "edge-path", text, fatal=False))
        server = Server(instance.id, placement.address, placement.port, placement.weight, placement.backup)
        placed.append((instance, server))
    return placed


def _serves(instance: Instance, route: Route | None) -> bool:
    if route is None or instance.maintenance or instance.status == "critical":
        return False
    return instance.status == "passing" or route.warning == "serve"


def _name(placed: Sequence[tuple[Instance, Server]]) -> list[tuple[Instance, Server]]:
    """Make names unique: where two nodes use one id, the older registration keeps it and the others get a suffix."""
    named = []
    taken: set[str] = {server.name for _, server in placed}
    seen: set[str] = set()
    for instance, server in sorted(placed, key=lambda pair: (pair[0].create_index, pair[0].key)):
        name = server.name
        if name in seen:
            digest = hashlib.sha256(instance.node.encode()).hexdigest()
            # A name that another instance chose on purpose only makes the suffix longer.
            name = next(
                n for n in (f"{name[:80]}.{digest[:size]}" for size in range(8, 20)) if n not in taken
            )
        seen.add(name)
        taken.add(name)
        named.append((instance, replace(server, name=name)))
    return named


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything to be told about one service. `route` is None when nothing of it is exposed."""

    election: Election
    route: Route | None
    refused: tuple[Refusal, ...] = ()


class Desire:
    """The desired state, brought up to date service by service. Not thread-safe; no I/O but the book's.

    The cost of an update is that of the services in it, and of all claims only when one of them has changed.
    """

    def __init__(self, policy: Policy, book: OwnerBook) -> None:
        self._policy = policy
        self._book = book
        self._elections: dict[str, Election] = {}
        self._refused: Mapping[str, tuple[Refusal, ...]] = {}
        self._backends: dict[str, Backend] = {}
        self._places = Places()
        self.serving = 0

    def update(self, services: Mapping[str, Sequence[Instance]], now: float) -> bool:
        """Take in the services that changed (no instances: gone), and with them their `neighbours`. Answers whether the
        claims were settled anew, in which case any route may be another. `now` in Unix seconds."""
        settle = False
        for service, instances in services.items():
            self._places.update(service, instances)
        for service, instances in services.items():
            before = self._elections.pop(service, None)
            self._backends.pop(service, None)
            after = elect(service, instances, self._policy, self._places.holder) if instances else None
            if after is not None:
                self._elections[service] = after
            self.serving += len(after.servers if after else ()) - len(before.servers if before else ())
            settle |= _asks(before) != _asks(after)
        if settle:
            self.settle(now)
        return settle

    def neighbours(self, services: Mapping[str, Sequence[Instance]]) -> set[str]:
        """Other services of which something may change when these do: they live at the same addresses and ports."""
        found = {
            name for service, here in services.items() for name in self._places.neighbours(service, here)
        }
        return found - set(services)

    def settle(self, now: float) -> None:
        """Give out all prefixes anew: claims, pins or the time have changed."""
        routes = {name: e.route for name, e in self._elections.items() if e.route is not None}
        claims = {
            name: Claim(name, route.paths, self._elections[name].order) for name, route in routes.items()
        }
        away = frozenset(name for name, election in self._elections.items() if not election.valid)
        self._refused = self._book.settle(claims, routes, away, now).refused
        self._backends.clear()

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
        """Names of instances that somebody has put into maintenance."""
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
