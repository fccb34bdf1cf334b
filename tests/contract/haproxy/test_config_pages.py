"""Every answer that HAProxy makes itself, and what it puts on all answers."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator

import pytest

from haproxy.controller.config.error_pages import pages
from haproxy.controller.config.model import EdgeState
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import eventually, time_scale
from tests.support.recorder import Answer, Request, Upstream, refusing_port
from tests.support.wire import Reply

STATUSES = [page.status for page in pages()]
# Each status on demand, as a rule of the frontend would give it.
ON_DEMAND = "".join(
    f"    http-request deny deny_status {s} if {{ path /status/{s} /v1/status/{s} /chat/{s} }}\n"
    for s in STATUSES
)


def answer(request: Request) -> Answer | None:
    if "/crash" in request.target:
        return None
    if "/slow" in request.target:
        time.sleep(1.5)
    return Answer(
        body=b'{"data":"' + b"x" * 2000 + b'"}',
        headers={
            "Server": "gunicorn",
            "X-Powered-By": "x",
            "Via": "1.1 10.0.0.1",
            "X-Request-ID": "of-the-instance",
            "X-Served-By": "me",
            "X-Content-Type-Options": "none",
        },
    )


@pytest.fixture(scope="module")
def running() -> Iterator[Edge]:
    mark = "    # --- 2. tricks\n"
    with Upstream("users", handler=answer) as upstream, refusing_port() as dead:
        routes = (
            backend("chat", upstream.port, paths=("/v1", "/chat"), check_identity=False, timeout_s=1),
            backend("dead", dead),
            backend("locked", upstream.port, auth="jwt", check_identity=False),
            backend("nobody"),
            backend("users", upstream.port, timeout_s=1),
        )
        with edge(EdgeState(routes), alter=(mark, mark + ON_DEMAND)) as made:
            yield made


def is_problem(reply: Reply, status: int, service: str, instance: str) -> None:
    assert reply.status == status
    assert reply.headers["content-type"] == "application/problem+json"
    body = json.loads(reply.body)
    assert set(body) == {"type", "title", "status", "detail", "instance", "request_id", "layer", "service"}
    assert (body["status"], body["layer"], body["service"]) == (status, "edge", service)
    assert body["instance"] == instance
    assert body["request_id"] == reply.headers["x-request-id"]
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"


def is_openai_error(reply: Reply, status: int) -> None:
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    body = json.loads(reply.body)
    assert set(body) == {"error"}
    assert {"message", "type", "param", "code"} <= set(body["error"])
    assert body["error"]["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_is_a_problem_and_an_openai_error_where_openai_clients_ask(
    running: Edge, status: int
) -> None:
    is_problem(running.get(f"/status/{status}"), status, "edge", f"/status/{status}")
    is_openai_error(running.get(f"/v1/status/{status}"), status)
    is_openai_error(running.get(f"/chat/{status}"), status)


def test_statuses_as_they_really_come_about(running: Edge) -> None:
    is_problem(running.get("/api/users//x"), 400, "edge", "/api/users//x")
    is_problem(running.get("/api/locked/x?token=secret"), 401, "locked", "/api/locked/x")
    is_problem(running.get('/none/"x'), 404, "edge", '/none/"x')
    refused = running.get("/api/users", "TRACE")
    is_problem(refused, 405, "edge", "/api/users")
    assert "GET" in refused.headers["allow"]
    is_problem(running.get("/api/users/crash", "POST"), 502, "users", "/api/users/crash")
    is_problem(running.get("/api/dead/1"), 503, "dead", "/api/dead/1")
    is_problem(running.get("/api/nobody"), 503, "nobody", "/api/nobody")
    is_problem(running.get("/api/users/slow", "POST"), 504, "users", "/api/users/slow")
    is_openai_error(running.get("/v1/chat/slow", "POST"), 504)
    is_openai_error(running.get("/v1/;x"), 400)


def test_retry_after_stands_where_waiting_helps(running: Edge) -> None:
    assert {s for s in STATUSES if "retry-after" in running.get(f"/status/{s}").headers} == {429, 503}


def test_answer_carries_the_edge_headers_and_hides_the_inside(running: Edge) -> None:
    reply = running.get("/api/users/1")
    assert reply.headers["x-served-by"] == "users-1"
    assert reply.headers["x-served-lane"] == "direct"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["x-frame-options"] == "DENY"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["x-request-id"] != "of-the-instance"
    for name in ("server", "x-powered-by", "via", "strict-transport-security"):
        assert name not in reply.headers
    assert b"127.0.0.1" not in repr(reply.headers).encode()


def inner(running: Edge, path: str) -> tuple[int, str]:
    client = http.client.HTTPConnection("127.0.0.1", running.settings.stats_port, timeout=5)
    client.request("GET", path)
    reply = client.getresponse()
    return reply.status, reply.read().decode()


def test_stats_and_metrics_stand_on_their_own_port(running: Edge) -> None:
    status, page = inner(running, "/stats")
    assert (status, "svc_users" in page) == (200, True)
    status, metrics = inner(running, "/metrics")
    assert (status, 'haproxy_backend_status{proxy="svc_users"' in metrics) == (200, True)
    assert inner(running, "/other")[0] == 404
    for path in ("/stats", "/metrics"):
        assert running.get(path).status == 404


def test_log_line_is_json_with_the_request_id(running: Edge) -> None:
    request_id = running.get("/api/users/1?secret=1").headers["x-request-id"]
    eventually(lambda: request_id in running.server.log_text, 3)
    (line,) = [x for x in running.server.log_text.splitlines() if request_id in x]
    entry = json.loads(line)
    assert (entry["status"], entry["service"], entry["server"]) == (200, "users", "users-1")
    assert (entry["method"], entry["path"], entry["client"]) == ("GET", "/api/users/1", "127.0.0.1")
    assert "secret" not in line


def test_slow_header_and_slow_body_reach_nobody_and_block_nobody() -> None:
    with Upstream("users") as upstream, edge(EdgeState((backend("users", upstream.port),))) as running:
        slow = []
        for number in range(330):
            connection = socket.create_connection(("127.0.0.1", running.port), timeout=10)
            head = b"POST /api/users/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
            connection.sendall(head + (b"\r\nhalf of the body" if number < 30 else b""))
            slow.append(connection)
        start = time.monotonic()
        assert running.get("/api/users/1").status == 200
        assert time.monotonic() - start < 1 * time_scale()
        assert len(upstream.heads) == 1
        assert slow[0].recv(100).startswith(b"HTTP/1.1 408")
        assert slow[-1].recv(100).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start < 7 * time_scale()
        assert len(upstream.heads) == 1
        for connection in slow:
            connection.close()


def test_slow_body_holds_an_instance_without_its_line() -> None:
    with Upstream("users") as upstream:
        state = EdgeState((backend("users", upstream.port),))
        with edge(state, alter=("http-request wait-for-body", "# ")) as running:
            running.raw(b"POST /api/users/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx", timeout_s=0.5)
            assert len(upstream.heads) == 1
