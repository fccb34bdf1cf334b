"""Forwarding through a real gateway, from real Consul to scripted instances: headers, routes, time, and the answer when no instance gives one."""

from __future__ import annotations

import contextlib
import http.client
import json
import time

import pytest

from tests.support.eventually import time_scale
from tests.support.gateway_rig import Rig, dead
from tests.support.scripted import Handler, ok

pytestmark = pytest.mark.shares("gateways")

BUSINESS, AI = 0, 3


def problem(answer: object) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/problem+json"  # type: ignore[attr-defined]
    return json.loads(answer.body)  # type: ignore[attr-defined]


# -- requests and answers as they come


def test_every_method_arrives_with_path_query_headers_and_body(rig: Rig) -> None:
    sent = {"Authorization": "Bearer x.y.z", "Cookie": "a=1; b=2", "Accept-Language": "de", "X-Own": "1"}
    with rig.service(ok) as pears:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            body = None if method in ("GET", "OPTIONS") else b'{"a": 1}'
            path = f"{pears.path}/%C3%A4/b%20c?x=%2F&y"
            assert rig.ask(method, path, service=pears, headers=sent, body=body).status == 200
            seen = pears.requests[-1]
            assert (seen.method, seen.path, seen.body) == (method, path, body or b"")
            assert {name: seen.headers[name.lower()] for name in sent} == sent
            assert seen.headers["x-edge-route"] == pears.name
            assert 0 < int(seen.headers["x-deadline-ms"]) <= 60_000
        assert len(pears.requests) == 6


def test_ids_and_the_edges_headers_go_on_and_the_trace_gets_a_span(rig: Rig) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    with rig.service(ok) as pears:
        sent = {"X-Request-ID": "0123456789abcdef", "traceparent": trace, "X-Forwarded-For": "10.9.8.7"}
        answer = rig.ask("GET", pears.path, service=pears, headers=sent)
        (seen,) = pears.requests
    assert seen.headers["x-request-id"] == answer.headers["x-request-id"] == "0123456789abcdef"
    assert seen.headers["traceparent"].startswith("00-" + "a" * 32)
    assert seen.headers["traceparent"] != trace
    assert seen.headers["x-forwarded-for"] == "10.9.8.7"


def test_headers_of_one_connection_stay_on_it_both_ways(rig: Rig) -> None:
    def behave(handler: Handler) -> None:
        handler.answer(
            200,
            b"{}",
            Keep_Alive="timeout=5",
            Connection="x-named, keep-alive",
            X_Named="1",
            Proxy_Authenticate="x",
            X_Kept="1",
        )

    with rig.service(behave) as pears:
        sent = {
            "Connection": "X-Secret",
            "X-Secret": "1",
            "TE": "trailers",
            "Keep-Alive": "1",
            "Upgrade": "h2c",
            "Proxy-Authorization": "x",
            "X-Kept": "1",
        }
        with rig.open("GET", pears.path, service=pears, headers=sent) as response:
            back = {name.lower() for name, _ in response.getheaders()}
        (seen,) = pears.requests
    assert not {"x-secret", "te", "keep-alive", "upgrade", "proxy-authorization"} & set(seen.headers)
    assert seen.headers["x-kept"] == "1"
    assert not {"x-named", "keep-alive", "proxy-authenticate"} & back
    assert "x-kept" in back


def test_repeated_headers_of_an_answer_stay_apart_and_ids_and_dates_come_once(rig: Rig) -> None:
    def behave(handler: Handler) -> None:
        handler.send_response(200)
        for name, value in (
            ("Set-Cookie", "a=1, 2; Path=/"),
            ("Set-Cookie", "b=2"),
            ("X-Request-ID", "of-the-instance-itself"),
            ("Content-Length", "0"),
        ):
            handler.send_header(name, value)
        handler.end_headers()

    with rig.service(behave) as pears, rig.open("GET", pears.path, service=pears) as response:
        headers = response.getheaders()
    assert [value for name, value in headers if name == "Set-Cookie"] == ["a=1, 2; Path=/", "b=2"]
    for name in ("date", "x-request-id", "content-length"):
        assert len([1 for each, _ in headers if each.lower() == name]) == 1, name


def test_an_answer_without_a_body_keeps_its_headers_and_the_connection(rig: Rig) -> None:
    def behave(handler: Handler) -> None:
        handler.send_response(int(handler.path.rpartition("/")[2]))
        handler.send_header("ETag", '"1"')
        if handler.command == "HEAD":
            handler.send_header("Content-Length", "12345")
        handler.end_headers()

    with rig.service(behave) as pears:
        connection = http.client.HTTPConnection("127.0.0.1", rig.gateways[BUSINESS].port, timeout=5)
        with contextlib.closing(connection):
            for method, status in (("HEAD", 200), ("GET", 204), ("GET", 304)) * 2:
                connection.request(method, f"{pears.path}/{status}", headers=rig.headers(pears))
                response = connection.getresponse()
                assert (response.status, response.read(), response.headers["ETag"]) == (status, b"", '"1"')
                assert response.headers["Content-Length"] == ("12345" if method == "HEAD" else None)
        assert len(pears.requests) == 6
        assert pears.upstreams[0].connections == 1  # nothing was left over on it


def test_early_hints_are_not_taken_for_the_answer(rig: Rig) -> None:
    def behave(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
        handler.answer(200, b"whole")

    with rig.service(behave) as pears:
        answer = rig.ask("GET", pears.path, service=pears)
    assert (answer.status, answer.body) == (200, b"whole")


def test_statuses_and_redirects_of_a_service_pass_unchanged(rig: Rig) -> None:
    def behave(handler: Handler) -> None:
        handler.answer(int(handler.path.rpartition("/")[2]), b"told", Location="/elsewhere")

    with rig.service(behave) as pears:
        for status in (201, 302, 404, 409, 422, 500, 501):
            answer = rig.ask("GET", f"{pears.path}/{status}", service=pears)
            assert (answer.status, answer.body, answer.headers["location"]) == (status, b"told", "/elsewhere")


# -- which route


def test_what_is_inside_a_service_stays_inside(rig: Rig) -> None:
    with rig.service(ok, strip="true") as pears:
        assert rig.ask("GET", f"{pears.path}/a/b?c=d", service=pears).status == 200
        assert rig.ask("GET", f"{pears.path}/internal/x", service=pears).status == 404
        assert [seen.path for seen in pears.requests] == ["/a/b?c=d"]


def test_a_path_that_can_be_read_in_two_ways_goes_nowhere(rig: Rig) -> None:
    paths = [
        "/../internal/x",
        "/./a",
        "//a",
        "/%2e%2e/a",
        "/a%2fb",
        "/a;b",
        "/a\\b",
        "/%00",
        "/a%",
        "/%zz",
        "/%0d%0aX:1",
    ]
    with rig.service(ok) as pears:
        for path in paths:
            answer = rig.ask("GET", pears.path + path, service=pears)
            assert (answer.status, problem(answer)["layer"]) == (400, "gateway"), path
        for method in ("TRACE", "CONNECT"):
            assert rig.ask(method, pears.path, service=pears).status in (400, 405)
        assert not pears.requests


def test_a_path_that_nobody_holds_is_404(rig: Rig) -> None:
    for path in ("/internal/users", "/internal", "/nothing/here"):
        answer = rig.ask("GET", path)
        assert (answer.status, problem(answer)["instance"]) == (404, path)


def test_the_groups_own_health_is_answered(rig: Rig) -> None:
    answer = rig.ask("GET", "/api/gateway/business")
    assert (answer.status, json.loads(answer.body)) == (200, {"status": "healthy", "gateway": "business"})
    assert rig.ask("GET", "/health/ready").headers["x-service"] == "gateway-business"


def test_a_service_registered_at_the_gateways_address_leads_nowhere(rig: Rig) -> None:
    with rig.service(ok) as pears:
        rig.register(pears.name, f"{pears.name}-loop", rig.gateways[BUSINESS].port, pears.meta)
        rig.deregister(pears.instance_id(0))
        rig.settle()
        try:
            began = time.monotonic()
            answer = rig.ask("GET", pears.path, service=pears)
            assert answer.status == 503
            assert time.monotonic() - began < 2 * time_scale()
        finally:
            rig.deregister(f"{pears.name}-loop")
        assert not pears.requests


def test_another_domains_route_is_not_this_groups(rig: Rig) -> None:
    with rig.service(ok, domain="ai") as pears:
        assert rig.ask("GET", pears.path, service=pears, gateway=AI).status == 200
        assert rig.ask("GET", pears.path, service=pears, gateway=BUSINESS).status == 404
        assert len(pears.requests) == 1


# -- time


def test_a_route_has_the_patience_that_it_asks_for(rig: Rig) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(float(handler.path.rpartition("/")[2]))
        handler.answer()

    with rig.service(slow, timeout="1") as pears:
        for method in ("POST", "GET"):
            assert rig.ask(method, f"{pears.path}/0.7", service=pears).status == 200
        began = time.monotonic()
        answer = rig.ask("POST", f"{pears.path}/2.5", service=pears, body=b"{}")
        assert 0.9 <= time.monotonic() - began < 2.0 * time_scale()
        told = problem(answer)
    assert answer.status == 504
    assert (told["layer"], told["failed"], told["service"], told["attempts"]) == (
        "gateway",
        "service",
        pears.name,
        1,
    )
    assert told["degraded"] is True
    assert told["known"] == {"done": "unknown"}
    assert len(pears.requests) == 3


def test_a_callers_deadline_ends_the_wait(rig: Rig) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(1.5)
        handler.answer()

    with rig.service(slow) as pears:
        began = time.monotonic()
        answer = rig.ask("POST", pears.path, service=pears, body=b"", headers={"X-Deadline-Ms": "300"})
        assert time.monotonic() - began < 1.2 * time_scale()
        assert answer.status == 504
        assert int(pears.requests[0].headers["x-deadline-ms"]) <= 300
        assert rig.ask("GET", pears.path, service=pears, headers={"X-Deadline-Ms": "0"}).status == 504
        assert len(pears.requests) == 1


# -- when no instance can answer


def test_business_without_an_instance_says_that_it_is_degraded(rig: Rig) -> None:
    with rig.service(dead) as pears:
        read = rig.ask("GET", pears.path, service=pears)
        write = rig.ask("POST", pears.path, service=pears, body=b"{}")
    told = problem(read)
    assert (read.status, told["degraded"], told["known"]) == (503, True, {"stored_answer": False})
    assert (told["service"], told["breaker"]) == (pears.name, "closed")
    assert told["attempts"] >= 1
    assert read.headers["retry-after"]
    assert (write.status, problem(write)["known"]) == (503, {"done": False})


def test_a_service_that_has_gone_keeps_its_route(rig: Rig) -> None:
    with rig.service(ok) as pears:
        rig.deregister(pears.instance_id(0))
        rig.settle()
        for named in (pears, None):
            answer = rig.ask("GET", f"{pears.path}/1", service=named)
            assert (answer.status, problem(answer)["service"]) == (503, pears.name)


def test_openai_paths_get_openai_errors(rig: Rig) -> None:
    for path in ("/v1/chat/completions", "/chat"):
        answer = rig.ask("POST", path, service="chat", gateway=AI, body=b"{}")
        assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
        error = json.loads(answer.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) == ("server_error", "service_unavailable")
