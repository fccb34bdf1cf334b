"""Part (f): that both gateways are asked for the same, and that its services do what their ids say."""

from __future__ import annotations

import time

import pytest

from bench import apps
from bench.gateway import BOUNDS, same_data, with_tails
from bench.results import Result
from bench.wrk import Sample


def item(kind: str) -> str:
    return kind + "1" * 31


def test_same_data_looks_into_the_services_envelopes() -> None:
    theirs = {"user": {"data": {"user_id": "1"}}, "product": {"data": {"price": 19.99}}}
    assert same_data(theirs, {"user": {"user_id": "1"}, "product": {"price": 19.99}, "_complete": True})
    assert not same_data(theirs, {"user": {"user_id": "2"}, "product": {"price": 19.99}})
    assert not same_data(theirs, {"user": {"user_id": "1"}, "product": None})


def test_tails_are_compared_with_the_same_work() -> None:
    p99_ms = {"composed, 0 ms": 50, "tutorial, 0 ms": 100, "composed, 20 ms": 300, "tutorial, 20 ms": 200}
    samples = {name: [Sample(1, 1, value, 1, 0)] for name, value in p99_ms.items()}
    figures = with_tails(Result("f", "", ()), samples).figures
    assert [(figure.value, figure.passed) for figure in figures] == [(0.5, True), (1.5, False)]


def test_bounds_are_those_that_readme_promises() -> None:
    bounds = {(name, divisor): bound for name, divisor, bound in BOUNDS if bound is not None}
    assert bounds == {
        ("composed, 0 ms", "tutorial, 0 ms"): 3.5,
        ("composed, 20 ms", "tutorial, 20 ms"): 20.0,
        ("from the gateway's cache", "tutorial, 0 ms"): 10.0,
        ("from the edge's cache", "tutorial, 0 ms"): 150.0,
        ("forwarded, 0 ms", "direct lane, 0 ms"): 0.4,
        ("forwarded, 20 ms", "direct lane, 20 ms"): 0.4,
    }


@pytest.mark.parametrize(
    ("service", "tutorials", "ours", "key"),
    [
        (apps.users, "/user", "/api/users", "user_id"),
        (apps.products, "/product", "/api/products", "product_id"),
    ],
)
def test_services_answer_both_gateways_alike(service, tutorials: str, ours: str, key: str) -> None:  # type: ignore[no-untyped-def]
    client = service().test_client()
    for kind, control in (
        (apps.AT_ONCE, "no-store"),
        (apps.WAITING, "no-store"),
        (apps.KEEPABLE, "public, max-age=300"),
    ):
        began = time.monotonic()
        answers = [client.get(f"{prefix}/{item(kind)}") for prefix in (tutorials, ours)]
        assert (time.monotonic() - began >= 2 * apps.WORK_S) or kind != apps.WAITING
        assert answers[0].json == answers[1].json
        assert answers[0].json["data"][key] == item(kind)
        assert [answer.headers["Cache-Control"] for answer in answers] == [control, control]
