"""Which services the stack runs, and how many instances of each. A new service is one more line here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One service: run as `python -m <module>`; `probe` is a path of it that the edge serves (any answer of an instance counts)."""

    name: str
    module: str
    instances: int
    probe: str


FLEET: tuple[ServiceSpec, ...] = (
    ServiceSpec("auth", "services.auth", 2, "/api/auth/.well-known/jwks.json"),
    ServiceSpec("users", "services.users", 3, "/api/users"),
    ServiceSpec("posts", "services.posts", 2, "/api/posts"),
    ServiceSpec("products", "services.products", 2, "/api/products"),
)

MAX_INSTANCES = 64
"""The most that `scale` accepts for one service: a slip of the finger must not fill the machine."""
