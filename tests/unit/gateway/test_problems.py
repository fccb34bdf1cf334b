"""Every error has one answer, in the shape that the path asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from discovery.errors import (
    BreakerOpen,
    BudgetExhausted,
    ConnectFailed,
    DeadlineExceeded,
    NoInstance,
    ResponseLost,
    ResponseTimeout,
)
from discovery.http.body import BodyFailed
from gateway.errors import GatewayError, LimitExceeded, Overloaded, PartFailed, Refused, RouteUnknown
from gateway.model import Answer
from gateway.problems import Problems

PROBLEMS = Problems("gateway-business", lambda service: {"pears": "half-open"}[service])
ID = "0123456789abcdef"


def answer(error: Exception, *, service: str = "pears", openai: bool = False, **members: Any) -> Answer:
    path = "/v1/pears" if openai else "/api/pears/1"
    return PROBLEMS.answer(error, path=path, request_id=ID, service=service, **members)


def parsed(given: Answer) -> dict[str, Any]:
    assert isinstance(given.body, bytes)
    assert given.header("content-length") == str(len(given.body))
    return json.loads(given.body)


def wrapped(cause: Exception) -> BodyFailed:
    try:
        raise BodyFailed("x") from cause
    except BodyFailed as error:
        return error


@pytest.mark.parametrize(
    ("error", "status", "failed"),
    [
        (NoInstance("pears"), 503, "service"),
        (BreakerOpen("pears", retry_after_s=3.2), 503, "service"),
        (BudgetExhausted("pears", attempts=2), 503, "service"),
        (ConnectFailed("pears", attempts=3), 503, "service"),
        (ResponseLost("pears", attempts=1), 502, "service"),
        (ResponseTimeout("pears", attempts=1), 504, "service"),
        (DeadlineExceeded("pears", sent=True, attempts=2), 504, "service"),
        (DeadlineExceeded("pears", sent=False), 504, "gateway"),
        (Overloaded("pears", "upstream"), 503, "gateway"),
        (Overloaded("", "group"), 503, "gateway"),
        (LimitExceeded("pears", [("RateLimit", '"a";r=0;t=7')], retry_after_s=6.5), 429, "gateway"),
        (RouteUnknown("", "No service holds this path."), 404, "gateway"),
        (Refused(413, "Too long."), 413, "gateway"),
        (PartFailed(504, "A part is late."), 504, "service"),
        (PartFailed(404, "A part is not there."), 404, "gateway"),
        (GatewayError("pears", "odd"), 503, "gateway"),
        (wrapped(Refused(408, "Late.")), 408, "gateway"),
        (wrapped(OSError()), 400, "gateway"),
        (ValueError("no path"), 400, "gateway"),
        (RuntimeError("a bug of ours, with a secret"), 500, "gateway"),
    ],
)
def test_each_error_has_its_status_and_names_the_layer_that_failed(
    error: Exception, status: int, failed: str
) -> None:
    given = answer(error)
    body = parsed(given)
    assert (given.status, body["status"], body["failed"]) == (status, status, failed)
    assert {"type", "title", "detail", "instance", "request_id", "layer", "service"} <= set(body)
    assert (body["layer"], body["instance"], body["request_id"]) == ("gateway", "/api/pears/1", ID)
    assert given.header("content-type") == "application/problem+json"
    assert given.header("cache-control") == "no-store"
    assert "secret" not in str(body)
    assert (status == 503 or status == 429) == (given.header("retry-after") is not None)


def test_a_problem_tells_attempts_breaker_and_source() -> None:
    body = parsed(answer(ResponseLost("pears", attempts=3, instance_id="pears-1")))
    assert (body["attempts"], body["breaker"], body["source"], body["service"]) == (
        3,
        "half-open",
        "gateway",
        "pears",
    )


def test_without_a_service_the_gateway_is_the_one_that_is_named() -> None:
    body = parsed(answer(RouteUnknown("", "x"), service=""))
    assert body["service"] == "gateway-business"
    assert "breaker" not in body


def test_members_are_added_and_replace_none_of_the_contracts() -> None:
    error = PartFailed(502, "x", members={"part": "user", "status": 200})
    body = parsed(answer(error, degraded=True, layer="edge"))
    assert (body["part"], body["degraded"], body["status"], body["layer"]) == ("user", True, 502, "gateway")


def test_the_time_to_wait_is_given_in_whole_seconds_upwards() -> None:
    assert answer(BreakerOpen("pears", retry_after_s=3.2)).header("retry-after") == "4"
    assert answer(BreakerOpen("pears", retry_after_s=0.0)).header("retry-after") == "1"
    limited = answer(LimitExceeded("pears", [("RateLimit", "x")], retry_after_s=6.5))
    assert (limited.header("retry-after"), limited.header("ratelimit")) == ("7", "x")


def test_headers_of_a_refusal_go_out_and_its_own_retry_after_stands() -> None:
    given = answer(Refused(503, "x", headers=[("Retry-After", "30"), ("Allow", "GET")]))
    assert [value for name, value in given.headers if name == "Retry-After"] == ["30"]
    assert given.header("allow") == "GET"


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (NoInstance("chat"), 503, "server_error", "service_unavailable"),
        (ResponseTimeout("chat"), 504, "server_error", "gateway_timeout"),
        (Overloaded("chat", "group"), 503, "server_error", "overloaded"),
        (LimitExceeded("chat", [], retry_after_s=1), 429, "rate_limit_error", "rate_limit_exceeded"),
        (RouteUnknown("", "x"), 404, "invalid_request_error", "not_found"),
        (Refused(401, "x"), 401, "authentication_error", "invalid_token"),
        (Refused(413, "x"), 413, "invalid_request_error", "request_too_large"),
    ],
)
def test_openai_paths_get_an_openai_error(error: Exception, status: int, kind: str, code: str) -> None:
    given = answer(error, openai=True)
    body = parsed(given)
    assert given.status == status
    assert given.header("content-type") == "application/json"
    assert set(body) == {"error"}
    assert body["error"]["message"]
    assert (body["error"]["type"], body["error"]["param"], body["error"]["code"]) == (kind, None, code)


def test_an_event_of_an_error_is_one_line() -> None:
    data = PROBLEMS.openai(ResponseLost("chat"))
    assert b"\n" not in data
    assert json.loads(data)["error"]["code"] == "bad_gateway"
