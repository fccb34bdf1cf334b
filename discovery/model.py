"""The nouns of discovery: frozen, hashable where it helps, and free of I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Status = Literal["passing", "warning", "critical"]
Balance = Literal["roundrobin", "leastconn", "source", "random", "first", "uri"]
Auth = Literal["public", "read-public", "jwt"]
Lane = Literal["direct", "gateway"]
Domain = Literal["identity", "business", "ai"]
Protocol = Literal["http", "h2c"]
Upgrade = Literal["none", "websocket"]

DEFAULT_WEIGHT = 100
MAX_WEIGHT = 256
EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Instance:
    """One registered process, as Consul's catalog and health describe it. Nothing in it has been checked yet.

    `status` is the worst of the instance's own checks and its node's; `maintenance` is true when the
    instance or its node is in maintenance. `address` is the service address, or the node's where that is empty.
    The same `id` can stand on two nodes: `key` is unique. `weight` counts where its
    metadata names none; `kind` is Consul's word for a part of a mesh (`connect-proxy`, `mesh-gateway` …), which is never sent a
    request. `identity_path` does not come from Consul: where it is set, a connection
    to the instance carries no request before `X-Service` has been right in an answer on that path.
    """

    service: str
    id: str
    node: str
    address: str
    port: int
    status: Status = "passing"
    maintenance: bool = False
    meta: Mapping[str, str] = field(default_factory=lambda: EMPTY, hash=False)
    create_index: int = 0
    weight: int = DEFAULT_WEIGHT
    kind: str = ""
    identity_path: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """(node, service id): unique in one Consul datacenter."""
        return (self.node, self.id)


@dataclass(frozen=True, slots=True)
class Route:
    """What a service asks of the edge, after every value has been checked (see `discovery.contract`).

    `timeout_s` is the wait for an answer's head, `idle_s` the longest silence once it has begun. `cache`: the edge may keep
    what calls itself shared. `stream`: bodies of requests are passed on as they come.
    """

    service: str
    paths: tuple[str, ...]
    balance: Balance = "roundrobin"
    auth: Auth = "jwt"
    lane: Lane = "direct"
    domain: Domain = "business"
    check: str = "/health/ready"
    check_identity: bool = True
    warning: Literal["serve", "skip"] = "serve"
    protocol: Protocol = "http"
    strip: bool = False
    timeout_s: int = 30
    idle_s: int = 60
    cache: bool = False
    stream: bool = False
    upgrade: Upgrade = "none"


@dataclass(frozen=True, slots=True)
class Placement:
    """What one instance asks of the edge beside its route: checked address, port, weight 1–256, backup."""

    address: str
    port: int
    weight: int = DEFAULT_WEIGHT
    backup: bool = False


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """Consul's HTTP check of an instance. All times in seconds."""

    path: str = "/health/ready"
    interval_s: float = 2.0
    timeout_s: float = 2.0
    deregister_after_s: float = 60.0


@dataclass(frozen=True, slots=True)
class GrpcCheck:
    """Consul's check by gRPC's health service, which is asked for `service`. All times in seconds."""

    service: str = ""
    interval_s: float = 2.0
    timeout_s: float = 2.0
    deregister_after_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Registration:
    """One instance to be registered. `route` None registers it for discovery only: not exposed at the edge.

    `meta` holds further metadata; keys of the contract in it are refused, they come from `route`, `weight` and `backup`.
    `id` must be unique on its agent. `weight` 1–256.
    """

    name: str
    address: str
    port: int
    id: str
    route: Route | None = None
    weight: int = DEFAULT_WEIGHT
    backup: bool = False
    meta: Mapping[str, str] = field(default_factory=lambda: EMPTY, hash=False)
    tags: tuple[str, ...] = ()
    check: HttpCheck | GrpcCheck | None = field(default_factory=HttpCheck)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One immutable answer of the catalog: service name → its instances, sorted by key. `version` grows by one with each change."""

    services: Mapping[str, tuple[Instance, ...]] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    version: int = 0

    def instances(self, service: str) -> tuple[Instance, ...]:
        """Every instance known of the service, in whatever state; empty when there is none."""
        return self.services.get(service, ())


@dataclass(frozen=True, slots=True)
class Change:
    """What differs between two snapshots, for one service."""

    service: str
    before: tuple[Instance, ...]
    after: tuple[Instance, ...]
