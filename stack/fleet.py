"""Which services the stack runs, and how many instances of each. A new service is one more line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One service: run as `python -m <module>`; `probe` is a path of it that the edge serves (any answer of an instance counts).

    `environment` is given to its instances beside what all get; `database` says whether it keeps one.
    """

    name: str
    module: str
    instances: int
    probe: str
    environment: Mapping[str, str] = field(default_factory=dict)
    database: bool = True


def _gateway(domain: str) -> ServiceSpec:
    environment = {"GATEWAY_DOMAIN": domain, "WORKER_CLASS": "gevent"}
    return ServiceSpec(
        f"gateway-{domain}", "gateway", 2, f"/api/gateway/{domain}", environment, database=False
    )


FLEET: tuple[ServiceSpec, ...] = (
    ServiceSpec("auth", "services.auth", 2, "/api/auth/.well-known/jwks.json"),
    ServiceSpec("users", "services.users", 3, "/api/users"),
    ServiceSpec("posts", "services.posts", 2, "/api/posts"),
    ServiceSpec("products", "services.products", 2, "/api/products"),
    ServiceSpec("notifications", "services.notifications", 1, "/api/notifications"),
    ServiceSpec("analytics", "services.analytics", 1, "/api/analytics/totals"),
    _gateway("identity"),
    _gateway("business"),
    _gateway("ai"),
)

MAX_INSTANCES = 64
"""The most that `scale` accepts for one service: a slip of the finger must not fill the machine."""
