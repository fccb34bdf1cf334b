"""Requests through the whole stack: which instance answers, what the edge adds, and what it answers by itself."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.accounts import Account, ask
from tests.support.actor import Actor, actor
from tests.support.eventually import eventually
from tests.support.faults import guest
from tests.support.fleet import Fleet
from tests.support.servers import free_port
from tests.support.wire import Reply

pytestmark = pytest.mark.needs_stack

PUBLIC = {
    "auth": "/api/auth/.well-known/jwks.json",
    "posts": "/api/posts",
    "products": "/api/products",
}


def problem(reply: Reply) -> dict[str, object]:
    """The problem that an error answer carries, its shape checked."""
    assert reply.headers["content-type"].startswith("application/problem+json"), reply
    body = json.loads(reply.body)
    assert {"type", "title", "status", "detail", "instance", "request_id", "layer", "service"} <= set(body), (
        body
    )
    assert body["status"] == reply.status
    assert body["request_id"] == reply.headers["x-request-id"]
    return body


@pytest.mark.parametrize("service", PUBLIC)
def test_public_route_is_answered_by_an_instance_of_its_service(fleet: Fleet, service: str) -> None:
    reply = ask(fleet.edge_port, "GET", PUBLIC[service])
    assert reply.status == 200
    assert reply.headers["x-served-by"] in {member.id for member in fleet.instances(service)}
    assert reply.headers["x-served-lane"] == "direct"


def test_requests_reach_every_instance_of_a_service(fleet: Fleet, account: Account) -> None:
    ids = {member.id for member in fleet.instances("users")}
    seen = {account.ask("GET", f"/api/users/{account.id}").headers["x-served-by"] for _ in range(30)}
    assert len(ids) == 3
    assert seen == ids


@pytest.mark.parametrize("path", ["/", "/nowhere", "/apiX", "/metrics", "/internal/auth/keys"])
def test_unknown_path_is_a_404_problem_of_the_edge(fleet: Fleet, path: str) -> None:
    reply = ask(fleet.edge_port, "GET", path)
    assert reply.status == 404
    assert problem(reply)["layer"] == "edge"


@pytest.mark.parametrize("path", ["/api", "/api/usersX", "/api/user", "/api/nowhere/1"])
def test_unknown_path_under_api_is_a_404_problem_of_the_gateway(fleet: Fleet, path: str) -> None:
    """The business gateway holds `/api` for its composed routes."""
    reply = ask(fleet.edge_port, "GET", path)
    assert reply.status == 404
    assert (problem(reply)["layer"], reply.headers["x-served-lane"]) == ("gateway", "gateway")


def by_gateway(reply: Reply) -> Reply | None:
    return reply if reply.headers.get("x-served-lane") == "gateway" and reply.status != 404 else None


def test_route_without_a_live_instance_is_a_503_problem_with_retry_after(fleet: Fleet) -> None:
    absent = Actor("absent", "absent-1", port=free_port())
    with guest(fleet, absent, {"edge-path": "/api/absent", "edge-auth": "public"}):
        # Before its first check of the instance, the edge says 503 for itself.
        reply = eventually(lambda: by_gateway(ask(fleet.edge_port, "GET", "/api/absent")), 10)
        assert reply.status == 503
        assert int(reply.headers["retry-after"]) >= 1
        body = problem(reply)
        assert (body["layer"], body["service"], body["degraded"]) == ("gateway", "absent", True)


def test_error_of_an_instance_is_a_problem_of_the_service(fleet: Fleet) -> None:
    reply = ask(fleet.edge_port, "GET", "/api/posts/there-is-no-such-post")
    assert reply.status == 404
    body = problem(reply)
    assert (body["layer"], body["service"]) == ("service", "posts")


def test_good_request_id_is_kept_through_the_stack(fleet: Fleet) -> None:
    reply = ask(fleet.edge_port, "GET", "/api/posts", headers={"X-Request-ID": "abcDEF-0123456789"})
    assert reply.headers["x-request-id"] == "abcDEF-0123456789"


@pytest.mark.parametrize(
    "given", [None, "short", "x" * 65, "has spaces in it, truly", "semi;colon-semi;colon"]
)
def test_missing_or_odd_request_id_is_replaced(fleet: Fleet, given: str | None) -> None:
    reply = ask(
        fleet.edge_port, "GET", "/api/posts", headers={} if given is None else {"X-Request-ID": given}
    )
    assert reply.headers["x-request-id"] != given
    assert re.fullmatch(r"[A-Za-z0-9-]{16,64}", reply.headers["x-request-id"])


def test_instance_sees_whose_route_it_is_and_the_id_that_the_client_gets(fleet: Fleet) -> None:
    meta = {"edge-path": "/api/mirror", "edge-auth": "public"}
    with actor("mirror", "mirror-1") as mirror, guest(fleet, mirror, meta):
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        send = {"traceparent": trace}
        reply = eventually(
            lambda: (r := ask(fleet.edge_port, "GET", "/api/mirror/1", headers=send)).status == 200 and r, 10
        )
        method, path, headers = mirror.seen[-1]
    assert (method, path) == ("GET", "/api/mirror/1")
    assert headers["x-edge-route"] == "mirror"
    assert headers["x-request-id"] == reply.headers["x-request-id"]
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"].startswith("127.0.0.1")
    assert headers["traceparent"] == trace
    assert reply.headers["x-served-by"] == "mirror-1"


def test_server_and_internal_addresses_do_not_leave(fleet: Fleet) -> None:
    ports = {str(member.port) for member in fleet.instances("posts")}
    reply = ask(fleet.edge_port, "GET", "/api/posts")
    assert "server" not in reply.headers
    assert not any(f"127.0.0.1:{port}" in value for value in reply.headers.values() for port in ports)
