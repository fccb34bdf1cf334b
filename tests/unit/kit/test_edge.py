"""What a service believes of where a request comes from: of the edge before it, and of the pages that send it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import request, url_for
from flask.testing import FlaskClient
from pydantic import ValidationError

from services.kit import ServiceApp, require_scope

Make = Callable[..., ServiceApp]

FORWARDED = {
    "X-Forwarded-For": "198.51.100.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "shop.example.com:8443",
}


@pytest.fixture
def shop(make: Make) -> FlaskClient:
    app = make()

    @app.get("/api/hello/items/")
    def items() -> dict[str, Any]:
        return {"url": url_for("items", _external=True), "from": request.remote_addr}

    return app.test_client()


def test_links_and_redirects_lead_back_to_where_the_edge_saw_the_client(shop: FlaskClient) -> None:
    answer = shop.get("/api/hello/items/", headers=FORWARDED)
    assert answer.json == {"url": "https://shop.example.com:8443/api/hello/items/", "from": "198.51.100.7"}
    redirect = shop.get("/api/hello/items", headers=FORWARDED)
    assert redirect.headers["Location"] == "https://shop.example.com:8443/api/hello/items/"
    forged = FORWARDED | {"X-Forwarded-For": "6.6.6.6, 198.51.100.7"}
    assert shop.get("/api/hello/items/", headers=forged).json["from"] == "198.51.100.7"  # type: ignore[index]


def test_prefix_that_the_edge_took_off_is_put_before_links(shop: FlaskClient) -> None:
    headers = FORWARDED | {"X-Forwarded-Prefix": "/shop"}
    answer = shop.get("/api/hello/items/", headers=headers)
    assert answer.json["url"] == "https://shop.example.com:8443/shop/api/hello/items/"  # type: ignore[index]
    assert shop.get("/nowhere", headers=headers).json["instance"] == "/shop/nowhere"  # type: ignore[index]


@pytest.mark.parametrize(("peer", "believed"), [("203.0.113.5", False), ("10.1.2.3", True), ("", False)])
def test_only_the_edge_is_believed(make: Make, peer: str, believed: bool) -> None:
    app = make(settings={"trusted_proxies": "10.0.0.0/8, ::1/128"})

    @app.get("/api/hello/from")
    def source() -> dict[str, Any]:
        return {"scheme": request.scheme, "host": request.host, "from": request.remote_addr}

    answer = app.test_client().get("/api/hello/from", headers=FORWARDED, environ_base={"REMOTE_ADDR": peer})
    theirs = {"scheme": "https", "host": "shop.example.com:8443", "from": "198.51.100.7"}
    assert answer.json == (theirs if believed else {"scheme": "http", "host": "localhost", "from": peer})


PREFLIGHT = {
    "Origin": "https://app.example.com",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def with_origins(make: Make, **settings: Any) -> FlaskClient:
    app = make(settings=settings)

    @app.post("/api/hello/orders")
    @require_scope("user")
    def order() -> dict[str, Any]:
        return {}

    return app.test_client()


def test_preflight_is_answered_without_a_token_where_the_origin_is_named(make: Make) -> None:
    client = with_origins(make, cors_origins="https://app.example.com, http://localhost:4200")
    answer = client.options("/api/hello/orders", headers=PREFLIGHT)
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert "Origin" in answer.headers["Vary"]
    refused = client.post("/api/hello/orders", headers={"Origin": "https://app.example.com"})
    assert refused.status_code == 401
    assert refused.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
    assert client.options("/nowhere", headers=PREFLIGHT).status_code == 404


@pytest.mark.parametrize(
    ("settings", "origin"),
    [
        ({}, "https://app.example.com"),
        ({"cors_origins": "https://app.example.com"}, "https://app.example.com.evil.org"),
        ({"cors_origins": "https://app.example.com", "cors_credentials": True}, "null"),
    ],
)
def test_no_other_origin_may_read(make: Make, settings: dict[str, Any], origin: str) -> None:
    client = with_origins(make, **settings)
    for answer in (
        client.options("/api/hello/orders", headers=PREFLIGHT | {"Origin": origin}),
        client.post("/api/hello/orders", headers={"Origin": origin}),
    ):
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]


def test_credentials_are_for_named_origins_alone(make: Make) -> None:
    named = with_origins(make, cors_origins="https://app.example.com", cors_credentials=True)
    answer = named.options("/api/hello/orders", headers=PREFLIGHT)
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    answer = with_origins(make, cors_origins="*").options("/api/hello/orders", headers=PREFLIGHT)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    for bad in ({"cors_origins": "*", "cors_credentials": True}, {"cors_origins": "https://a.example/path"}):
        with pytest.raises(ValidationError):
            make(settings=bad)
