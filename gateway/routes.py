"""Whose path it is: the routes of the view, those that it had, and what the edge says."""

from __future__ import annotations

import threading
from dataclasses import replace

from discovery.admission.rules import GATEWAY, Admissions, Admitted
from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul.static import Reading
from discovery.contract import Policy, check_name
from discovery.errors import ContractError
from discovery.model import Domain, Instance, Route, Snapshot

# Routes of services that are gone are kept for their fallbacks; the oldest go first.
MAX_REMEMBERED = 4096


def is_gateway(service: str) -> bool:
    """Whether the service is a gateway: never forwarded to, or requests could go in circles."""
    return service.startswith(GATEWAY)


class Exposed:
    """The view as the edge takes it: without the instances that it would not send a request to, and each of the others with
    its checked address and name, and with the path on which it has to name its service.

    Metadata is hostile input: what is registered at the address of a control port, or of another service, would be reached
    through us. Thread-safe. Promises of `Reading`.
    """

    def __init__(self, view: Reading, policy: Policy, clock: Clock = SYSTEM_CLOCK) -> None:
        self._view = view
        self._clock = clock
        self._admissions = Admissions(policy)
        self._lock = threading.Lock()
        self._seen = Snapshot(version=-1)
        self._snapshot = Snapshot(version=-1)

    def snapshot(self) -> Snapshot:
        seen = self._view.snapshot()
        if seen is not self._seen or self._clock.monotonic() >= self._admissions.due:
            with self._lock:
                seen, now = self._view.snapshot(), self._clock.monotonic()
                if seen is not self._seen or now >= self._admissions.due:
                    self._follow(seen, now)
        return self._snapshot

    def _follow(self, seen: Snapshot, now: float) -> None:
        before, after = self._seen.services, seen.services
        changed = {name for name in before.keys() | after.keys() if before.get(name) is not after.get(name)}
        changed |= self._admissions.release(now)
        changed |= self._admissions.neighbours({name: after.get(name, ()) for name in changed})
        self._admissions.update({name: after.get(name, ()) for name in changed}, now)
        services = {name: self._snapshot.services.get(name, ()) for name in after}
        services |= {name: self._admitted(name) for name in changed if name in after}
        # Each has a version of its own: what time alone releases is a change that the view knows nothing of.
        self._snapshot = Snapshot(services, self._snapshot.version + 1)
        self._seen = seen

    def _admitted(self, service: str) -> tuple[Instance, ...]:
        admission = self._admissions.by_service.get(service)
        admitted = admission.admitted if admission is not None else ()
        return tuple(sorted(map(exposed, admitted), key=lambda instance: instance.key))

    def route(self, service: str) -> Route | None:
        """What the service asks for as a whole, as of the last `snapshot`."""
        admission = self._admissions.by_service.get(service)
        return admission.route if admission is not None else None

    def age_s(self) -> float:
        return self._view.age_s()

    @property
    def healthy(self) -> bool:
        return self._view.healthy


def exposed(admitted: Admitted) -> Instance:
    """An instance as calls need it: its name is fit for headers and logs, and its address for connections."""
    address = admitted.placement.address
    return replace(admitted.instance, id=admitted.name, address=address, identity_path=admitted.identity)


class Routes:
    """Finds the route of a path. Thread-safe."""

    def __init__(self, view: Exposed, domain: Domain) -> None:
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

        `named` is the service that the edge says it is: it knows the owner of a prefix that several ask for. Believed if the service
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
        """The domain of a service that has or had a route, else None."""
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
            present = [service for service, instances in snapshot.services.items() if instances]
            routes = {service: route for service in present if (route := self._view.route(service))}
            self._remember(routes, snapshot)
            first = {name: min(i.create_index for i in snapshot.services[name]) for name in routes}
            # The service that came first holds a prefix: written last.
            self._prefixes = {
                prefix: routes[name]
                for name in sorted(routes, key=lambda name: (first[name], name), reverse=True)
                for prefix in routes[name].paths
            }
            self._gone = {prefix: route for route in self._remembered.values() for prefix in route.paths}
            self._depth = max((p.count("/") for p in (*self._prefixes, *self._gone)), default=0)
            self._routes, self._seen = routes, snapshot

    def _remember(self, routes: dict[str, Route], snapshot: Snapshot) -> None:
        self._remembered |= {name: route for name, route in self._routes.items() if name not in routes}
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


def holds(prefix: str, path: str) -> bool:
    """Whether the path is the prefix or lies under it."""
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/")
