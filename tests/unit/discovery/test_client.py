"""ServiceClient against real sockets: what the next service receives, and what the caller gets back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from discovery import BreakerSettings, Observer, ServiceClient, StaticView
from tests.support.scripted import Upstream, upstream
from tests.unit.discovery.calling import client, dead, status


def test_answer_comes_with_its_instance(good: Upstream) -> None:
    good.behave = lambda handler: handler.answer(200, b'{"id": 1}', Content_Type="application/json")
    response = client(good).request("GET", "users", "/api/users/1", query={"a": "b c", "d": [1, 2]})
    assert (response.status, response.json(), response.attempts) == (200, {"id": 1}, 1)
    assert response.instance.port == good.port
    assert response.headers["content-type"] == "application/json"
    assert good.requests[0].path == "/api/users/1?a=b+c&d=1&d=2"


def test_request_id_trace_token_and_deadline_are_passed_on(good: Upstream) -> None:
    calls = ServiceClient(StaticView([good.instance()]), token_source=lambda within_s: "secret")
    calls.request(
        "POST",
        "users",
        "/",
        json={"a": 1},
        request_id="0123456789abcdef",
        traceparent="00-ab-cd-01",
        deadline_s=2.0,
        headers={"x-deadline-ms": "999999", "Connection": "X-Secret", "x-request-id": "other"},
    )
    headers = good.requests[0].headers
    assert headers["x-request-id"] == "0123456789abcdef"
    assert headers["traceparent"] == "00-ab-cd-01"
    assert headers["authorization"] == "Bearer secret"
    assert headers["content-type"] == "application/json"
    assert 1000 < int(headers["x-deadline-ms"]) <= 2000
    assert "connection" not in headers
    assert good.requests[0].body == b'{"a": 1}'


def test_callers_own_authorization_is_kept(good: Upstream) -> None:
    calls = ServiceClient(StaticView([good.instance()]), token_source=lambda within_s: "secret")
    calls.request("GET", "users", "/", headers={"authorization": "Bearer mine"})
    assert good.requests[0].headers["authorization"] == "Bearer mine"


@pytest.mark.parametrize("code", [500, 501, 429, 404])
def test_other_error_statuses_are_answers(good: Upstream, code: int) -> None:
    good.behave = status(code)
    response = client(good).request("GET", "users", "/")
    assert (response.status, response.attempts) == (code, 1)


def test_callers_mistakes_do_not_count_against_the_service(good: Upstream) -> None:
    calls = client(good, breaker=BreakerSettings(min_calls=1))
    with pytest.raises(ValueError, match="no path"):
        calls.request("GET", "users", "http://elsewhere/")
    with pytest.raises(ValueError, match="no path"):
        calls.request("GET", "users", "/a b\r\nX: y")
    with pytest.raises(ValueError, match="header"):
        calls.request("GET", "users", "/", headers={"X-Bad": "a\r\nHost: b"})

    def broken() -> Iterator[bytes]:
        yield b"some"
        raise OSError("the caller's client has gone")

    with pytest.raises(ValueError, match="body could not be read"):
        calls.request("PUT", "users", "/", body=broken())
    snapshot = calls.breakers()["users"]
    assert (snapshot.state, snapshot.failures) == ("closed", 0)


def test_redirects_are_not_followed(good: Upstream) -> None:
    good.behave = lambda handler: handler.answer(302, b"", Location="http://127.0.0.1:1/")
    assert client(good).request("GET", "users", "/").status == 302


def test_proxies_of_the_environment_are_not_used(good: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert client(good).request("GET", "users", "/").status == 200


def test_iterator_body_is_sent_only_once(good: Upstream) -> None:
    with upstream(status(502)) as bad:
        calls = client(bad.instance(id="users-0"), good)
        for body, final in ((b"x", 200), (iter([b"x"]), 502)):
            with_key = {"Idempotency-Key": "k"}
            answer = calls.request("PUT", "users", "/", balance="first", body=body, headers=with_key)
            assert answer.status == final


def test_observer_hears_of_calls_and_attempts(good: Upstream) -> None:
    heard: list[tuple[object, ...]] = []

    class Ear(Observer):
        def on_call(self, service: str, method: str, outcome: str, attempts: int, duration_s: float) -> None:
            heard.append(("call", service, method, outcome, attempts))

        def on_attempt(
            self, service: str, instance_id: str, outcome: str, attempt: int, duration_s: float
        ) -> None:
            heard.append(("attempt", instance_id, outcome, attempt))

        def on_ejected(self, service: str, instance_id: str, duration_s: float) -> None:
            heard.append(("ejected", instance_id))

    calls = ServiceClient(StaticView([dead(), good.instance()]), observer=Ear())
    calls.request("GET", "users", "/", balance="first")
    assert heard == [
        ("ejected", "users-0-dead"),
        ("attempt", "users-0-dead", "ConnectFailed", 1),
        ("attempt", f"users-{good.port}", "2xx", 2),
        ("call", "users", "GET", "2xx", 2),
    ]
