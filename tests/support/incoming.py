"""A request as the gateway has read it, for tests of what becomes of it."""

from __future__ import annotations

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.model import Domain, Route
from gateway.model import Incoming
from services.kit.auth.verifier import Identity


def person(subject: str = "ann", *scopes: str, by_key: bool = False) -> Identity:
    """What a token proves; without scopes it has those of a user."""
    return Identity(subject, frozenset(scopes or ("user",)), 9e9, by_key)


def incoming(
    path: str = "/api/pears/1",
    query: str = "",
    *,
    method: str = "GET",
    who: Identity | None = None,
    within_s: float = 10.0,
    clock: Clock = SYSTEM_CLOCK,
    route: Route | None = None,
    domain: Domain = "business",
    **headers: str,
) -> Incoming:
    """A request to pears, or to the service of `route`. `who` is what its token proves; `headers` have `_` for `-`."""
    sent = {"x-forwarded-host": "edge.test", "accept": "*/*"}
    if who is not None:
        sent["authorization"] = f"Bearer {who.subject}"
    return Incoming(
        method=method,
        path=path,
        query=query,
        headers=sent | {name.replace("_", "-"): value for name, value in headers.items()},
        service=route.service if route is not None else "pears",
        domain=domain,
        client="10.0.0.1",
        request_id="r" * 32,
        traceparent="00-trace",
        deadline=clock.monotonic() + within_s,
        identify=lambda: who,
        route=route,
    )
