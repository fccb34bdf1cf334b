"""Which instances of which services requests may be sent to: one decision for both lanes, out of the catalog alone. No I/O.

The edge's controller and every gateway come to it by this code from the same catalog, so that what the one refuses is not
served by the other, also while one of them, or Consul, is away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from discovery.admission.holders import Places
from discovery.admission.resolver import Resolver, is_host
from discovery.contract import (
    Policy,
    check_address,
    check_name,
    instance_name,
    parse_placement,
    parse_route,
)
from discovery.errors import ContractError
from discovery.model import Instance, Placement, Route

# Services that are gateways: no request is forwarded to them by another, or it could go in circles.
GATEWAY = "gateway-"
FIRST_WAIT_S = 2.0
Services = Mapping[str, Sequence[Instance]]


@dataclass(frozen=True, slots=True)
class Rejection:
    """One instance that is not taken as it asks. `field` names the metadata key or property at fault.

    `fatal` False: it is served, but something it asks for is not done.
    """

    instance: str
    field: str
    reason: str
    fatal: bool = True


@dataclass(frozen=True, slots=True)
class Admitted:
    """An instance that may be sent requests as far as its health lets it. `name` is its id where that is plain, and unique
    among the service's: what logs, headers and HAProxy call it. `identity` is the path on which it has to name its service;
    empty where it need not. Not `direct`: HAProxy is not to send it requests. It takes a new server for up until its first
    check has named its service, and would send the public requests of one service to the protected port of another meanwhile."""

    instance: Instance
    placement: Placement
    name: str
    identity: str
    direct: bool


@dataclass(frozen=True, slots=True)
class Admission:
    """One service by itself, before the ownership of paths is settled.

    `route` is what most of its instances ask for, None when they ask for none or for nothing valid (`valid` says which).
    `order` is the lowest create index.
    """

    service: str
    route: Route | None = None
    valid: bool = True
    order: int = 0
    admitted: tuple[Admitted, ...] = ()
    rejections: tuple[Rejection, ...] = ()


# An instance, the route that it asks for, and where it may be reached (None where it may not, and asks for no route).
_Asked = tuple[Instance, Route | None, Placement | None]


def admit(service: str, instances: Sequence[Instance], policy: Policy, places: Places) -> Admission:
    """What a service asks for, by the majority of its instances; a tie goes to the newest (highest create index).

    An instance with a bad value is rejected alone. One that asks validly for another route than the majority is served by the
    majority's, which is noted; one that asks for none is not exposed. Where another service was first at its place, an instance
    is served by a gateway if it has to say its name, and otherwise not at all.
    """
    try:
        check_name(service)
    except ContractError as error:
        reasons = tuple(Rejection(i.id, "name", error.reason) for i in instances)
        return Admission(service, valid=False, rejections=reasons)
    rejections: list[Rejection] = []
    asked: list[_Asked] = []
    for instance in instances:
        if instance.kind:
            if "edge-path" in instance.meta:
                rejections.append(Rejection(instance.id, "kind", f"a {instance.kind[:40]} never has a route"))
            continue
        try:
            # Whole before it votes: one that cannot serve has no say about the route.
            route = parse_route(service, instance.meta)
            asked.append((instance, route, _placement(instance, policy, needed=route is not None)))
        except ContractError as error:
            rejections.append(Rejection(instance.id, error.field, error.reason))
    route = _majority(asked)
    return Admission(
        service=service,
        route=route,
        valid=bool(asked) or all(instance.kind for instance in instances),
        order=min((instance.create_index for instance, *_ in asked), default=0),
        admitted=_name_all(_place(service, route, asked, rejections, places)),
        rejections=tuple(rejections),
    )


def _placement(instance: Instance, policy: Policy, *, needed: bool) -> Placement | None:
    try:
        return parse_placement(instance, policy)
    except ContractError:
        if needed:
            raise
        return None


def _majority(asked: Sequence[_Asked]) -> Route | None:
    if not asked:
        return None
    votes = Counter(route for _, route, _ in asked)
    newest = {route: max(i.create_index for i, other, _ in asked if other == route) for route in votes}
    return max(votes, key=lambda route: (votes[route], newest[route]))


def _place(
    service: str, route: Route | None, asked: Sequence[_Asked], rejections: list[Rejection], places: Places
) -> list[Admitted]:
    placed = []
    for instance, other, placement in asked:
        if route is not None and other is None:
            rejections.append(Rejection(instance.id, "edge-path", "asks for no route, unlike most instances"))
            continue
        if placement is None:
            continue
        identity = _identity_path(instance, route)
        # A place that another has left stays its own for a while, for it may be restarting; but where the name of the service
        # is asked for, ports are used again at once.
        first = places.holder((placement.address, placement.port), left=not identity)
        direct = first in (None, service) or service.startswith(GATEWAY)
        if not direct:
            where = "served by the gateway alone, which asks for its name" if identity else "not served"
            text = f"{instance.address}:{instance.port} is held by {first}, which had it first: {where}"
            rejections.append(Rejection(instance.id, "address", text, fatal=not identity))
            if not identity:
                continue
        if route is not None and other != route:
            text = "asks for another route than most instances of the service, which decides"
            rejections.append(Rejection(instance.id, "edge-path", text, fatal=False))
        placed.append(Admitted(instance, placement, instance.id, identity, direct))
    return placed


def _name_all(placed: Sequence[Admitted]) -> tuple[Admitted, ...]:
    """Where two nodes use one id, the older registration keeps it, and the others are named by node and id."""
    named: dict[str, Admitted] = {}
    for each in sorted(placed, key=lambda each: (each.instance.create_index, each.instance.key)):
        name = instance_name(each.instance.id)
        if name in named:
            name = instance_name(each.instance.id, each.instance.node)
        named[name] = replace(each, name=name)
    return tuple(named.values())


def _identity_path(instance: Instance, route: Route | None) -> str:
    if route is not None:
        return route.check if route.check_identity else ""
    return "" if instance.meta.get("edge-check-identity") == "off" else "/health/ready"


class Admissions:
    """The admission of every service, brought up to date as the catalog changes. Not thread-safe; times are monotonic seconds.

    Where an address is a host name, what it resolves to counts: all of it has to be allowed, and the first is taken.
    """

    def __init__(self, policy: Policy, resolver: Resolver | None = None) -> None:
        self._policy = policy
        self._resolver = resolver or Resolver()
        self._hosts: dict[str, frozenset[str]] = {}  # of services that have any
        self._places = Places(policy.hold_s)
        self.by_service: dict[str, Admission] = {}

    @property
    def due(self) -> float:
        """When `release` will have something to do although nothing changes in the catalog."""
        return float("-inf") if self._resolver.changed else self._places.due

    def update(self, services: Services, now: float) -> None:
        """Take in the services that changed (no instances: gone), and with them their `neighbours`."""
        self._follow_hosts(services)
        resolved = {name: tuple(map(self._resolve, instances)) for name, instances in services.items()}
        for service, instances in resolved.items():
            self._places.update(service, instances, now)
        for service, instances in resolved.items():
            if instances:
                self.by_service[service] = admit(service, instances, self._policy, self._places)
            else:
                self.by_service.pop(service, None)

    def neighbours(self, services: Services) -> set[str]:
        """Other services of which something may change when these do: they live at the same addresses and ports."""
        found: set[str] = set()
        for service, instances in services.items():
            found |= self._places.neighbours(service, tuple(map(self._resolve, instances)))
        return found - set(services)

    def release(self, now: float) -> set[str]:
        """Services that are to be updated although nothing of theirs has changed in the catalog: a place that was held is free,
        or a host name has another address."""
        changed = self._resolver.take_changed() if self._resolver.changed else set()
        moved = {service for service, hosts in self._hosts.items() if hosts & changed}
        return self._places.release(now) | moved

    def _follow_hosts(self, services: Services) -> None:
        first, before = not self.by_service, dict(self._hosts)
        for service, instances in services.items():
            hosts = frozenset(each.address for each in instances if is_host(each.address))
            self._hosts.pop(service, None)
            if hosts:
                self._hosts[service] = hosts
        if self._hosts != before:
            self._resolver.follow({host for hosts in self._hosts.values() for host in hosts})
            if first:  # what is served already must not be taken away for want of an address
                self._resolver.wait(FIRST_WAIT_S)

    def _resolve(self, instance: Instance) -> Instance:
        if not is_host(instance.address):
            return instance
        found = self._resolver.addresses(instance.address)
        bad = (each for each in found if not self._allowed(each))
        return replace(instance, address=next(bad, found[0])) if found else instance

    def _allowed(self, address: str) -> bool:
        try:
            check_address(address, self._policy.networks)
        except ContractError:
            return False
        return True
