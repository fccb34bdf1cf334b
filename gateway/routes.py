"""Whose path it is: the routes of the view, those that it had, and what the edge says."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from discovery.contract import Policy, check_name, parse_placement, parse_route
from discovery.errors import ContractError
from discovery.model import Domain, Instance, Route, Snapshot
from discovery.static_view import Reading

GATEWAY = "gateway-"
# Routes of services that are gone are kept for their fallbacks; the oldest go first.
MAX_REMEMBERED = 4096


def is_gateway(service: str) -> bool:
    """Whether the service is a gateway: never forwarded to, or requests could go in circles."""
    return service.startswith(GATEWAY)


class Exposed:
    """The view as the edge would take it: without the instances whose metadata, address or port the contract refuses.

    Metadata is hostile input, and what is registered at the address of a control port would be reached through us.
    Thread-safe. Promises of `Reading`.
    """

    def __init__(self, view: Reading, policy: Policy) -> None:
        self._view = view
        self._policy = policy
        self._lock = threading.Lock()
        self._seen = Snapshot()
        self._snapshot = Snapshot(version=-1)

    def snapshot(self) -> Snapshot:
        seen = self._view.snapshot()
        if seen is self._seen:
            return self._snapshot
        with self._lock:
            if seen is not self._seen:
                before, filtered = self._seen.services, self._snapshot.services
                services = {
                    name: filtered[name]
                    if before.get(name) is instances and name in filtered
                    else tuple(each for each in instances if self._takes(each))
                    for name, instances in seen.services.items()
                }
                self._snapshot = Snapshot(services, seen.version)
                self._seen = seen
            return self._snapshot

    def age_s(self) -> float:
        return self._view.age_s()

    @property
    def healthy(self) -> bool:
        return self._view.healthy

    def _takes(self, instance: Instance) -> bool:
        try:
            check_name(instance.service)
            parse_route(instance.service, instance.meta)
            parse_placement(instance, self._policy)
        except ContractError:
            return False
        return True


class Routes:
    """Finds the route of a path. Thread-safe; `view` is an `Exposed` one, whose metadata can be parsed."""

    def __init__(self, view: Reading, domain: Domain) -> None:
        self._view = view
        self._domain = domain
        self._lock = threading.Lock()
        self._seen = Snapshot(version=-1)
        self._routes: dict[str, Route] = {}
        self._prefixes: dict[str, Route] = {}
        self._remembered: dict[str, Route] = {}
        self._gone: dict[str, Route] = {}
        self._depth = 0

    def find(self, path: str, named: str | None = None) -> Route | None:
        """The route that `path` (percent-encoded, without query) belongs to, or None.

        `named` is the service that the edge says it is: it knows who owns a prefix that several ask for. Believed if the service
        has or had a prefix of this path, or is not known here at all: then it is one that went before this gateway came, and
        its route has no prefix. A service that asks for no route is never found.
        """
        self.follow()
        if named is not None:
            route = self._routes.get(named) or self._remembered.get(named)
            if route is not None and any(holds(prefix, path) for prefix in route.paths):
                return route
            if route is None and not self._seen.instances(named) and _is_name(named):
                return Route(service=named, paths=(), domain=self._domain)
        parts = path.split("/", self._depth + 1)[: self._depth + 1]
        for size in range(len(parts), 1, -1):
            prefix = "/".join(parts[:size])
            route = self._prefixes.get(prefix) or self._gone.get(prefix)
            if route is not None:
                return route
        return None

    def domain_of(self, service: str) -> Domain | None:
        """Whose the service is, or was; None for one without a route."""
        route = self._routes.get(service) or self._remembered.get(service)
        return route.domain if route is not None else None

    def follow(self) -> None:
        """Take over what has changed in the view. Call it after each change, so that no route is missed that was there briefly."""
        snapshot = self._view.snapshot()
        if snapshot is self._seen:
            return
        with self._lock:
            if snapshot is self._seen:
                return
            before = self._seen.services
            routes = {}
            for service, instances in snapshot.services.items():
                known = before.get(service) is instances
                route = self._routes.get(service) if known else elect(instances)
                if route is not None:
                    routes[service] = route
            self._remember(routes, snapshot)
            first = {name: min(i.create_index for i in snapshot.services[name]) for name in routes}
            # Who came first holds a prefix: written last.
            self._prefixes = {
                prefix: routes[name]
                for name in sorted(routes, key=lambda name: (first[name], name), reverse=True)
                for prefix in routes[name].paths
            }
            self._gone = {prefix: route for route in self._remembered.values() for prefix in route.paths}
            self._depth = max((p.count("/") for p in (*self._prefixes, *self._gone)), default=0)
            self._routes, self._seen = routes, snapshot

    def _remember(self, routes: dict[str, Route], snapshot: Snapshot) -> None:
        for service, route in self._routes.items():
            if service not in routes:
                self._remembered[service] = route
        for service in list(self._remembered):
            # One that is there and asks for no route any more does not want to be reached.
            if snapshot.instances(service):
                del self._remembered[service]
        while len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]


def _is_name(value: str) -> bool:
    try:
        check_name(value)
    except ContractError:
        return False
    return True


def elect(instances: Sequence[Instance]) -> Route | None:
    """What a service asks for, by the majority of its instances; a tie goes to the newest. As the edge does it."""
    asked = [(parse_route(each.service, each.meta), each.create_index) for each in instances]
    votes = Counter(route for route, _ in asked)
    newest = {route: max(index for other, index in asked if other == route) for route in votes}
    return max(votes, key=lambda route: (votes[route], newest[route]), default=None)


def holds(prefix: str, path: str) -> bool:
    """Whether the path is the prefix or lies under it."""
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/")
