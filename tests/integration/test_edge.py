"""Requests through the whole stack. What the edge does by itself is in tests/contract/haproxy and tests/security; here is what
only shows with real services, gateways and a controller behind it."""

from __future__ import annotations

import gzip
import json
import uuid
from typing import Any

import pytest
import requests

from stack.run.api import Stack
from tests.support.accounts import Account, ask
from tests.support.actor import actor
from tests.support.eventually import eventually
from tests.support.faults import deregister, guest, register
from tests.support.fleet import Fleet
from tests.support.wire import Reply

pytestmark = pytest.mark.needs_stack

PUBLIC = {
    "auth": "/api/auth/.well-known/jwks.json",
    "posts": "/api/posts",
    "products": "/api/products",
}
GROUPS = ("ai", "business", "identity")


def problem(reply: Reply) -> dict[str, object]:
    """The problem that an error answer carries, its shape checked."""
    assert reply.headers["content-type"].startswith("application/problem+json"), reply
    body: dict[str, object] = json.loads(reply.body)
    assert body["status"] == reply.status
    assert body["request_id"] == reply.headers["x-request-id"]
    return body


# -- routes


def test_requests_reach_every_instance_of_a_service(fleet: Fleet, account: Account) -> None:
    ids = {member.id for member in fleet.instances("users")}
    seen = {account.ask("GET", f"/api/users/{account.id}").headers["x-served-by"] for _ in range(30)}
    assert len(ids) == 3
    assert seen == ids


@pytest.mark.parametrize(
    ("path", "layer"),
    [("/nowhere", "edge"), ("/internal/auth/keys", "edge"), ("/api/usersX", "gateway"), ("/api", "gateway")],
)
def test_unknown_path_is_a_404_of_the_edge_or_of_the_gateway_that_holds_api(
    fleet: Fleet, path: str, layer: str
) -> None:
    reply = ask(fleet.edge_port, "GET", path)
    assert (reply.status, problem(reply)["layer"]) == (404, layer)


def test_instance_learns_the_subject_of_the_token_and_nothing_that_the_client_claims(
    fleet: Fleet, account: Account
) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    spoofed = {"X-Auth-Subject": "root", "X-Auth-Scope": "admin service", "X-Forwarded-For": "203.0.113.9"}
    with actor("witness", "witness-1") as witness, guest(fleet, witness, {"edge-path": "/api/witness"}):
        path = "/api/witness/1"
        eventually(lambda: account.ask("GET", path).status == 200, 10)
        assert ask(fleet.edge_port, "GET", path, headers=spoofed).status == 401
        reply = account.ask("GET", path, **spoofed, traceparent=trace)
        method, target, headers = witness.seen[-1]
    assert (reply.status, method, target) == (200, "GET", path)
    assert (headers["x-auth-subject"], headers["x-auth-scope"]) == (account.id, "user")
    assert (headers["x-edge-route"], headers["x-forwarded-for"]) == ("witness", "127.0.0.1")
    assert headers["x-request-id"] == reply.headers["x-request-id"]
    assert headers["traceparent"] == trace
    assert reply.headers["x-served-by"] == "witness-1"


# -- a stranger


def verdict(fleet: Fleet, service: str, token: str | None = None) -> dict[str, object]:
    """What the controller has written about the service; empty while there is nothing."""
    keys = fleet.consul("GET", "/v1/kv/edge/status/?keys", token=token)
    mine = [key for key in keys if key.endswith(f"/{service}")]
    return fleet.consul("GET", f"/v1/kv/{mine[0]}?raw", token=token) if mine else {}


def test_rogue_service_with_a_valid_token_of_its_own_takes_no_path_and_no_name(
    fleet: Fleet, stack: Stack, account: Account
) -> None:
    stack.admit("rogue")
    token = stack.vault.consul_token("rogue")
    with actor("rogue", "rogue-1") as rogue:
        try:
            register(fleet, rogue, {"edge-path": "/api/users", "edge-auth": "public"}, token=token)
            told = eventually(lambda: verdict(fleet, "rogue", token), 10)
            assert "/api/users" in json.dumps(told)
            assert told["accepted"] is False, told
            assert verdict(fleet, "users")["accepted"] is True
            for _ in range(10):
                assert account.ask("GET", f"/api/users/{account.id}").status == 200
            assert rogue.requests == 0
        finally:
            deregister(fleet, rogue.instance_id)
    with actor("users", "users-rogue") as rogue, pytest.raises(requests.HTTPError) as refused:
        register(fleet, rogue, {"edge-path": "/api/users"}, token=token)
    assert refused.value.response.status_code == 403


# -- the edge's cache, in front of what products answers


@pytest.fixture(scope="module")
def product(stack_fleet: Fleet, admin: Account) -> str:
    """The path of a product that an administrator has just written."""
    body = {
        "sku": f"LAMP-{uuid.uuid4().hex[:8]}",
        "category": "lamps",
        "name": f"Lamp {uuid.uuid4().hex[:6]}",
        "description": "It shines. " * 200,
        "price": 4999,
        "currency": "EUR",
    }
    reply = admin.ask("POST", "/api/products", body)
    assert reply.status == 201, reply
    return reply.headers["location"]


def test_change_by_a_tag_that_the_edge_made_weak_is_seen_at_once_with_a_token_and_soon_without(
    fleet: Fleet, admin: Account, product: str
) -> None:
    plain = ask(fleet.edge_port, "GET", product)
    packed = ask(fleet.edge_port, "GET", product, headers={"Accept-Encoding": "gzip"})
    tag = packed.headers["etag"]
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(packed.body) == plain.body
    assert tag.startswith("W/"), "HAProxy weakens what it compresses"
    known = ask(fleet.edge_port, "GET", product, headers={"If-None-Match": plain.headers["etag"]})
    assert (known.status, known.body) == (304, b"")
    assert admin.ask("PATCH", product, {"name": "Renamed"}, **{"If-Match": tag}).status == 200

    def name(reply: Reply) -> Any:
        return json.loads(reply.body)["data"]["name"]

    assert name(admin.ask("GET", product)) == "Renamed"
    eventually(lambda: name(ask(fleet.edge_port, "GET", product)) == "Renamed", 30, every_s=0.25)


# -- the breakers of all gateways


def breakers(admin: Account) -> dict[str, Any]:
    reply = admin.ask("GET", "/edge/breakers")
    assert reply.status == 200, reply
    found: dict[str, Any] = json.loads(reply.body)["groups"]
    return found


def taken(reply: Reply, wanted: list[str]) -> Reply | None:
    """The answer to an order that all of `wanted` have taken; None when some have not said so yet."""
    said = json.loads(reply.body)
    assert reply.status in (200, 202, 503), reply
    if reply.status == 503:
        return None  # none has: Redis did not answer in time
    assert set(said["taken_by"]) | set(said["missing"]) == set(wanted), reply
    return reply if (reply.status, said["missing"]) == (200, []) else None


def by_hand(admin: Account, group: str) -> list[tuple[str, str]]:
    """State of the breaker for products, and its cause, at each gateway of a group that answered in time."""
    states = [each["breakers"]["products"] for each in breakers(admin)[group]["instances"].values()]
    return [(each["state"], each["who"]) for each in states]


def test_administrator_sees_every_gateway_and_orders_whole_groups_through_the_edge(
    fleet: Fleet, account: Account, admin: Account
) -> None:
    wanted = {group: sorted(each.id for each in fleet.instances(f"gateway-{group}")) for group in GROUPS}
    assert all(len(ids) == 2 for ids in wanted.values())
    assert account.ask("GET", "/edge/breakers").status == 403
    eventually(lambda: {g: sorted(of["instances"]) for g, of in breakers(admin).items()} == wanted, 10)
    assert all(each["sharing"] for of in breakers(admin).values() for each in of["instances"].values())
    order = {"state": "open", "for_s": 60, "reason": "a test"}
    for group, ids in wanted.items():
        path = f"/edge/breakers/{group}/products"
        try:
            # 202 where a process had not said so within a second, on a busy machine: the same order again does no harm.
            reply = eventually(lambda: taken(admin.ask("POST", path, order), ids), 10)  # noqa: B023
            assert reply.headers["x-served-lane"] == "gateway"
            eventually(lambda: by_hand(admin, group) == [("open", "hand")] * 2, 5)  # noqa: B023
        finally:
            eventually(lambda: taken(admin.ask("DELETE", path), ids), 10)  # noqa: B023
