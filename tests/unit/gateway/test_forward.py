"""What is sent, what comes back, and what stands in for it: the decisions, without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from discovery.calls.client import Relay
from discovery.errors import NoInstance, ResponseLost
from discovery.model import Balance, Domain, Route
from gateway.disconnects import Departures
from gateway.errors import Overloaded, Refused, RouteUnknown
from gateway.model import Answer, Incoming
from gateway.problems import Fallbacks, Problems
from gateway.proxy import SMALL_BYTES, Calls, Forward
from tests.support.incoming import incoming
from tests.unit.gateway.composing import Upstreams, answers

PEARS = Route("pears", ("/api/pears", "/api/pears/ripe"))


def forward(asked: Incoming, extra: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the service is asked with."""
    calls = Upstreams({"pears": answers()})
    Forward(cast(Calls, calls), Departures())(asked, extra or {})
    ((_, target, options),) = calls.sent
    return {"target": target, **options}


def pears(path: str = "/api/pears/1", query: str = "", **changes: Any) -> Incoming:
    """A request on the route of pears with these changes."""
    return incoming(path, query, route=replace(PEARS, **changes))


@pytest.mark.parametrize(
    ("strip", "path", "query", "target"),
    [
        (False, "/api/pears/1", "", "/api/pears/1"),
        (False, "/api/pears/1", "a=b&c", "/api/pears/1?a=b&c"),
        (True, "/api/pears/1", "a=b", "/1?a=b"),
        (True, "/api/pears/ripe/1", "", "/1"),
        (True, "/api/pears/riper", "", "/riper"),
        (True, "/api/pears", "a=b", "/?a=b"),
        (True, "/api/pears/", "", "/"),
    ],
)
def test_the_target_is_as_it_came_or_without_its_longest_prefix(
    strip: bool, path: str, query: str, target: str
) -> None:
    assert forward(pears(path, query, strip=strip))["target"] == target


@pytest.mark.parametrize(
    ("route", "path"),
    [
        (replace(PEARS, strip=True), "/api/pears/metrics"),
        (replace(PEARS, strip=True), "/api/pears/internal/x"),
        (replace(PEARS, strip=True), "/api/pears/health/live"),
        (Route("pears", ("/internal/pears",)), "/internal/pears/1"),
        (Route("gateway-ai", ("/api/x",)), "/api/x"),
        (None, "/api/x"),
    ],
)
def test_what_is_inside_and_other_gateways_are_not_called(route: Route | None, path: str) -> None:
    with pytest.raises(RouteUnknown):
        forward(incoming(path, route=route))


def test_what_cannot_be_passed_on_in_time_or_in_http_1_is_refused() -> None:
    with pytest.raises(Refused, match="time") as late:
        forward(incoming(route=PEARS, within_s=-1))
    with pytest.raises(Refused) as grpc:
        forward(pears(protocol="h2c"))
    assert (late.value.status, grpc.value.status) == (504, 502)


@pytest.mark.parametrize(
    ("balance", "key"), [("source", "10.0.0.1"), ("uri", "/api/pears/1"), ("leastconn", "10.0.0.1")]
)
def test_balancing_goes_by_the_client_or_by_the_path(balance: Balance, key: str) -> None:
    assert forward(pears(balance=balance))["source_key"] == key


def test_the_caches_conditions_replace_the_callers_headers_and_leave_them_as_they_were() -> None:
    asked = incoming(route=PEARS, if_none_match='"old"', range="bytes=0-1")
    sent = forward(asked, extra={"if-none-match": '"new"', "range": ""})
    assert sent["headers"] == {"if-none-match": '"new"', "accept": "*/*", "x-forwarded-host": "edge.test"}
    assert asked.headers["if-none-match"] == '"old"'


def test_what_a_route_and_the_client_say_goes_with_the_call() -> None:
    asked = pears("/api/pears/ripe/1", strip=True, idle_s=7)
    sent = forward(replace(asked, timeout_s=3.0, host="shop.example:8080"))
    assert sent["relay"] == Relay(3.0, 7.0, SMALL_BYTES, "shop.example:8080")
    assert sent["headers"]["x-forwarded-prefix"] == "/api/pears/ripe"
    assert "x-forwarded-prefix" not in forward(pears())["headers"]


# -- fallbacks

PROBLEMS = Problems("gateway-business", lambda _: "open")
GOOD = Answer(
    200,
    [("X-Cache", "STALE"), ("X-Stale-Age", "7"), ("Cache-Control", "max-age=60")],
    b"old",
    source="stale",
)


def fallback(domain: Domain, method: str, *, stored: bool = True) -> tuple[Answer, list[Incoming]]:
    looked: list[Incoming] = []

    def last_good(asked: Incoming) -> Answer | None:
        looked.append(asked)
        return GOOD if stored else None

    path = "/v1/chat/completions" if domain == "ai" else "/api/pears/1"
    asked = incoming(path, method=method, domain=domain)
    return Fallbacks(PROBLEMS, last_good).of_error(asked, NoInstance("pears")), looked


@pytest.mark.parametrize("domain", ["identity", "business"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_read_gets_the_last_good_answer_which_is_not_to_be_kept(domain: Domain, method: str) -> None:
    given, _ = fallback(domain, method)
    assert (given.status, given.source) == (200, "stale")
    assert [value for name, value in given.headers if name == "Cache-Control"] == ["no-store"]
    assert (given.header("x-cache"), given.header("x-stale-age")) == ("STALE", "7")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("domain", ["identity", "business", "ai"])
def test_a_write_is_never_answered_as_if_it_had_happened(domain: Domain, method: str) -> None:
    given, looked = fallback(domain, method)
    assert given.status == 503
    assert not looked


@pytest.mark.parametrize(
    ("domain", "method", "members"),
    [
        ("business", "GET", {"degraded": True, "known": {"stored_answer": False}}),
        ("business", "POST", {"degraded": True, "known": {"done": False}}),
        ("identity", "GET", {}),
        ("identity", "POST", {}),
    ],
)
def test_business_says_that_it_is_degraded_and_what_is_known(
    domain: Domain, method: str, members: dict[str, object]
) -> None:
    given, _ = fallback(domain, method, stored=False)
    body = json.loads(cast(bytes, given.body))
    assert given.status == 503
    assert {name: body[name] for name in ("degraded", "known") if name in body} == members


def test_ai_answers_with_an_openai_error_and_nothing_stored() -> None:
    given, looked = fallback("ai", "GET")
    assert given.status == 503
    assert set(json.loads(cast(bytes, given.body))) == {"error"}
    assert not looked


def test_overload_is_refused_without_looking_for_something_better() -> None:
    def last_good(_: Incoming) -> Answer | None:
        raise AssertionError("Redis was asked")

    given = Fallbacks(PROBLEMS, last_good).of_error(incoming(), Overloaded("pears", "upstream"))
    assert given.status == 503
    assert given.header("retry-after")


def test_a_write_that_was_lost_may_have_happened() -> None:
    given = Fallbacks(PROBLEMS).of_error(incoming(method="POST"), ResponseLost("pears", attempts=1))
    assert json.loads(cast(bytes, given.body))["known"]["done"] == "unknown"


def test_a_failure_that_the_service_answered_gives_way_to_something_better_only() -> None:
    failed = Answer(500, [], b"sorry", source="pears-1")
    assert Fallbacks(PROBLEMS).of_answer(incoming(), failed) is failed
    assert Fallbacks(PROBLEMS, lambda _: None).of_answer(incoming(), failed) is failed
    assert Fallbacks(PROBLEMS, lambda _: GOOD).of_answer(incoming(), failed).body == b"old"
