"""The edge's cache and its limits: what is answered without an instance, and what is not answered at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from haproxy.controller.config.model import EdgeState
from tests.support.edge import Edge, backend, edge
from tests.support.recorder import Answer, Request, Upstream
from tests.support.tokens import Issuer

_FRESH = itertools.count()
PUBLIC = {"Cache-Control": "public, max-age=60"}


@dataclass
class Shop:
    edge: Edge
    upstream: Upstream
    issuer: Issuer
    answer: dict[str, str]

    def fresh(self) -> str:
        """A URL that no client has asked for; its answer may be stored for a minute."""
        self.answer.clear()
        self.answer.update(PUBLIC)
        return f"/api/products/{next(_FRESH)}"

    def ask(self, path: str, **headers: str) -> str:
        """`X-Cache` of the answer, `-` where it has none."""
        return self.edge.get(path, **headers).headers.get("x-cache", "-")

    def twice(self, headers: dict[str, str], path: str = "/api/products", **sent: str) -> tuple[str, str]:
        """`X-Cache` of two requests for the same fresh URL, answered with these headers."""
        self.answer.clear()
        self.answer.update(headers)
        url = f"{path}/{next(_FRESH)}"
        return self.ask(url, **sent), self.ask(url, **sent)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    issuer = Issuer.make("k1", tmp_path_factory.mktemp("keys"))
    headers: dict[str, str] = {}

    def handler(request: Request) -> Answer:
        return Answer(body=request.head, headers=dict(headers))

    with Upstream("products", handler=handler) as upstream:
        routes = (
            backend("locked", upstream.port, auth="jwt", check_identity=False),
            backend("orders", upstream.port, lane="gateway", cache=True, check_identity=False),
            backend("posts", upstream.port, auth="read-public", check_identity=False, cache=True),
            backend("private", upstream.port, check_identity=False),
            backend("products", upstream.port, cache=True),
            backend("gateway-business", upstream.port, check_identity=False),
        )
        with edge(EdgeState(routes, (issuer.verify_key,))) as running:
            yield Shop(running, upstream, issuer, headers)


CACHED = [
    {"Cache-Control": "public, max-age=60"},
    {"Cache-Control": "Max-Age=60,Public"},
    {"Cache-Control": "s-maxage=60"},
    {"Cache-Control": "public, s-maxage=60, max-age=1"},
    {"Cache-Control": "public, max-age=60", "ETag": '"x"'},
    {"Cache-Control": "public, max-age=60", "Vary": "Accept-Encoding"},
]
NOT_CACHED = [
    {},
    {"ETag": '"x"'},
    {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"},
    {"Cache-Control": "no-store"},
    {"Cache-Control": "private, max-age=60"},
    {"Cache-Control": "no-cache, max-age=60"},
    {"Cache-Control": "public, max-age=0"},
    {"Cache-Control": "public"},
    {"Cache-Control": "max-age=60"},
    {"Cache-Control": "max-age=60, x-public"},
    {"Cache-Control": "public, max-age=60", "Set-Cookie": "session=1"},
    {"Cache-Control": "public, max-age=60", "Vary": "Cookie"},
    {"Cache-Control": "public, max-age=60", "Vary": "*"},
    {"Cache-Control": "public, max-age=60", "Vary": "X-Auth-Subject"},
]


@pytest.mark.parametrize("headers", CACHED, ids=str)
@pytest.mark.parametrize("path", ["/api/products", "/api/posts", "/api/orders"])
def test_fresh_public_answer_comes_from_the_cache(shop: Shop, headers: dict[str, str], path: str) -> None:
    assert shop.twice(headers, path) == ("MISS", "HIT")


@pytest.mark.parametrize("headers", NOT_CACHED, ids=str)
def test_answer_that_says_no_is_not_cached(shop: Shop, headers: dict[str, str]) -> None:
    assert shop.twice(headers) == ("MISS", "MISS")


def test_hit_asks_no_instance_and_tells_its_age(shop: Shop) -> None:
    url = shop.fresh()
    first = shop.edge.get(url)
    shop.upstream.requests.clear()
    second = shop.edge.get(url)
    assert shop.upstream.requests == []
    assert second.body == first.body
    assert int(second.headers["age"]) >= 0
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    assert second.headers["x-served-by"] == "products-1"


def test_token_goes_around_the_cache_both_ways(shop: Shop) -> None:
    token = {"Authorization": "Bearer " + shop.issuer.good()}
    assert shop.twice(PUBLIC, **token) == ("BYPASS", "BYPASS")
    assert shop.twice(PUBLIC, Authorization="Bearer sk-x") == ("BYPASS", "BYPASS")
    assert shop.twice(PUBLIC, "/api/locked", **token) == ("-", "-")
    url = shop.fresh()
    assert [shop.ask(url), shop.ask(url, **token), shop.ask(url)] == ["MISS", "BYPASS", "HIT"]
    url = shop.fresh()
    assert [shop.ask(url, **token), shop.ask(url)] == ["BYPASS", "MISS"]


@pytest.mark.parametrize(
    "sent", [{"Cookie": "u=1"}, {"X_Api_Key": "k"}, {"Authorization": "Basic eA=="}], ids=str
)
@pytest.mark.parametrize("path", ["/api/products", "/api/orders"])
def test_request_that_says_who_asks_is_neither_answered_from_the_cache_nor_kept(
    shop: Shop, path: str, sent: dict[str, str]
) -> None:
    assert shop.twice(PUBLIC, path, **sent) == ("BYPASS", "BYPASS")
    url = shop.fresh().replace("/api/products", path)
    assert [shop.ask(url), shop.ask(url, **sent), shop.ask(url)] == ["MISS", "BYPASS", "HIT"]


def test_query_host_and_method_are_told_apart(shop: Shop) -> None:
    url = shop.fresh()
    assert shop.ask(url) == "MISS"
    assert shop.ask(url + "?page=2") == "MISS"
    assert shop.ask(url + "?page=2") == "HIT"
    assert shop.edge.get(url, "POST").headers.get("x-cache") is None
    other = f"GET {url} HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n"
    assert shop.edge.raw(other.encode()).count(b"MISS") == 1


def test_forged_header_cannot_poison_the_cache(shop: Shop) -> None:
    url = shop.fresh()
    shop.edge.get(url, X_Forwarded_Host="evil.test", X_Forwarded_Proto="evil", Forwarded="host=evil")
    assert b"evil" not in shop.edge.get(url).body


def test_client_that_wants_it_fresh_gets_it_fresh(shop: Shop) -> None:
    url = shop.fresh()
    assert [shop.ask(url), shop.ask(url, Cache_Control="no-cache")] == ["MISS", "MISS"]


def test_route_that_did_not_ask_is_never_kept_and_a_gateway_may_tell_of_its_own_cache(shop: Shop) -> None:
    assert shop.twice(PUBLIC, "/api/private") == ("-", "-")
    assert shop.twice({"X-Cache": "STALE"}) == ("STALE", "STALE")


def test_compressed_and_plain_answers_are_kept_apart(shop: Shop) -> None:
    url = shop.fresh()
    assert shop.edge.get(url, Accept_Encoding="gzip").headers.get("content-encoding") == "gzip"
    assert shop.edge.get(url).headers.get("content-encoding") is None
    assert shop.edge.get(url, Accept_Encoding="gzip").headers.get("content-encoding") == "gzip"


def test_too_many_requests_of_a_source_are_429() -> None:
    with (
        Upstream("users") as upstream,
        edge(EdgeState((backend("users", upstream.port),)), edge_rate_source=20) as running,
    ):
        statuses = [running.get("/api/users/1").status for _ in range(40)]
        assert statuses[:18] == [200] * 18
        assert statuses[25:] == [429] * 15
        refused = running.get("/api/users/1")
        assert refused.headers["retry-after"] == "10"
        assert refused.headers["content-type"] == "application/problem+json"
        assert running.get("/v1/x").headers["content-type"] == "application/json"


def test_too_many_requests_of_a_subject_are_429_for_that_subject(tmp_path: Path) -> None:
    issuer = Issuer.make("k1", tmp_path)
    with Upstream("users") as upstream:
        state = EdgeState((backend("users", upstream.port, auth="jwt"),), (issuer.verify_key,))
        with edge(state, edge_rate_subject=20) as running:
            busy = [issuer.good(sub="busy", jti=str(n)) for n in range(3)]  # a new token is no new allowance
            statuses = [
                running.get("/api/users/1", Authorization=f"Bearer {busy[n % 3]}").status for n in range(40)
            ]
            assert statuses[:18] == [200] * 18
            assert statuses[25:] == [429] * 15
            other = issuer.good(sub="other")
            assert running.get("/api/users/1", Authorization=f"Bearer {other}").status == 200


def test_limits_and_cache_can_be_turned_off() -> None:
    with (
        Upstream("users") as upstream,
        edge(EdgeState((backend("users", upstream.port),)), edge_cache_mb=0) as running,
    ):
        assert "track-sc0" not in running.settings.config_path.read_text()
        answers = [running.get("/api/users/1") for _ in range(50)]
        assert {answer.status for answer in answers} == {200}
        assert "x-cache" not in answers[-1].headers
