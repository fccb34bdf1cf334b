"""Requests as limits look at them: all that counts is whose they are."""

from __future__ import annotations

from gateway.model import Incoming
from services.kit.auth.verifier import Identity


def request(
    subject: str | None = "alice", *, by_key: bool = False, scopes: tuple[str, ...] = ("user",)
) -> Incoming:
    """None asks without a name."""
    identity = None if subject is None else Identity(subject, frozenset(scopes), 9e9, by_key)
    return Incoming(
        method="GET",
        path="/api/pears",
        query="",
        headers={},
        service="pears",
        domain="business",
        client="10.0.0.1",
        request_id="0" * 32,
        traceparent="",
        deadline=9e9,
        identify=lambda: identity,
    )
