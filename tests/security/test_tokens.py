"""The whole token table, through a real HAProxy: what passes, and everything that must not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from haproxy.controller.config.model import EdgeState
from tests.support.edge import Edge, backend, edge
from tests.support.matrix import one_always
from tests.support.recorder import Upstream
from tests.support.tokens import Issuer, b64, claims, hmac_signed, unsigned


@dataclass
class Door:
    """An edge in front of one upstream with three routes and a gateway, and the keys that it trusts (`one`, `two`) or not (`stray`)."""

    edge: Edge
    upstream: Upstream
    one: Issuer
    two: Issuer
    stray: Issuer

    def ask(self, authorization: str | None, path: str = "/api/locked/x", method: str = "GET") -> int:
        """The status; what reached the upstream is in `upstream.requests`."""
        self.upstream.requests.clear()
        headers = {} if authorization is None else {"Authorization": authorization}
        return self.edge.get(path, method, **headers).status


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("keys")
    one, two, stray = (Issuer.make(kid, folder) for kid in ("key-1", "key-2", "stray"))
    with Upstream("locked") as upstream:
        routes = (
            backend("gateway-business", upstream.port, check_identity=False),
            backend("locked", upstream.port, auth="jwt", check_identity=False),
            backend("open", upstream.port, auth="public", check_identity=False),
            backend("read", upstream.port, auth="read-public", check_identity=False),
        )
        state = EdgeState(routes, (one.verify_key, two.verify_key))
        with edge(state) as running:
            yield Door(running, upstream, one, two, stray)


Make = Callable[[Door], str]

# What is wrong → the Authorization header's value.
REFUSED: dict[str, Make] = {
    "an empty value": lambda d: "",
    "the scheme alone": lambda d: "Bearer",
    "another scheme": lambda d: "Basic dXNlcjpwYXNz",
    "no scheme": lambda d: d.one.good(),
    "no token at all": lambda d: "Bearer x",
    "an API key": lambda d: "Bearer sk-0123456789abcdef",
    "two parts": lambda d: "Bearer " + d.one.good().rpartition(".")[0],
    "four parts": lambda d: "Bearer " + d.one.good() + ".x",
    "alg none": lambda d: "Bearer " + unsigned(claims(), kid="key-1"),
    "alg none with a signature": lambda d: "Bearer " + unsigned(claims(), kid="key-1") + "c2ln",
    "HS256 with the key's path": lambda d: (
        "Bearer " + hmac_signed(claims(), str(d.one.pem_path).encode(), kid="key-1")
    ),
    "HS256 with the public key": lambda d: (
        "Bearer " + hmac_signed(claims(), d.one.pem_path.read_bytes(), kid="key-1")
    ),
    "HS256 with nothing": lambda d: "Bearer " + hmac_signed(claims(), b"", kid="key-1"),
    "a signature of a stranger": lambda d: "Bearer " + d.stray.sign(claims(), kid="key-1"),
    "a signature of our other key": lambda d: "Bearer " + d.two.sign(claims(), kid="key-1"),
    "another payload under a good signature": lambda d: "Bearer " + _swap(d.one.good()),
    "no kid": lambda d: "Bearer " + d.one.sign(claims(), kid=None),
    "an unknown kid": lambda d: "Bearer " + d.stray.good(),
    "a kid that is a path": lambda d: "Bearer " + d.one.sign(claims(), kid="../jwt/key-1"),
    "a kid that is the key's path": lambda d: "Bearer " + d.one.sign(claims(), kid=str(d.one.pem_path)),
    "a kid in a list": lambda d: "Bearer " + d.one.sign(claims(), kid=["key-1"]),
    "expired": lambda d: "Bearer " + d.one.good(exp=int(time.time()) - 1),
    "expiring now": lambda d: "Bearer " + d.one.good(exp=int(time.time())),
    "no exp": lambda d: "Bearer " + d.one.good(exp=...),
    "exp null": lambda d: "Bearer " + d.one.good(exp=None),
    "exp a string": lambda d: "Bearer " + d.one.good(exp="9999999999"),
    "exp true": lambda d: "Bearer " + d.one.good(exp=True),
    "exp a list": lambda d: "Bearer " + d.one.good(exp=[9999999999]),
    "exp an object": lambda d: "Bearer " + d.one.good(exp={"exp": 9999999999}),
    "exp negative": lambda d: "Bearer " + d.one.good(exp=-9999999999),
    "exp huge": lambda d: "Bearer " + d.one.sign(_with_exp("1e300")),
    "exp beyond 64 bits": lambda d: "Bearer " + d.one.sign(_with_exp("99999999999999999999999")),
    "exp not a number": lambda d: "Bearer " + d.one.sign(_with_exp("NaN")),
    "exp one level down": lambda d: "Bearer " + d.one.good(exp=..., deep={"exp": 9999999999}),
    "not yet begun": lambda d: "Bearer " + d.one.good(nbf=int(time.time()) + 60),
    "nbf a string": lambda d: "Bearer " + d.one.good(nbf="9999999999"),
    "another issuer": lambda d: "Bearer " + d.one.good(iss="evil"),
    "an issuer that begins like ours": lambda d: "Bearer " + d.one.good(iss="breakwater.evil"),
    "no issuer": lambda d: "Bearer " + d.one.good(iss=...),
    "an issuer in a list": lambda d: "Bearer " + d.one.good(iss=["breakwater"]),
    "another audience": lambda d: "Bearer " + d.one.good(aud="other-api"),
    "no audience": lambda d: "Bearer " + d.one.good(aud=...),
    "audience null": lambda d: "Bearer " + d.one.good(aud=None),
    "audiences without ours": lambda d: "Bearer " + d.one.good(aud=["a", "b"]),
    "no subject": lambda d: "Bearer " + d.one.good(sub=...),
    "a subject that ends the header": lambda d: "Bearer " + d.one.good(sub="x\r\nX-Auth-Scope: admin"),
    "a subject with a NUL": lambda d: "Bearer " + d.one.good(sub="x\x00y"),
    "a scope that ends the header": lambda d: "Bearer " + d.one.good(scope="user\r\nX-Auth-Subject: root"),
    "a payload that is no JSON": lambda d: "Bearer " + d.one.sign("not json"),
    "two tokens in one header": lambda d: f"Bearer {d.one.good()}, Bearer {d.one.good(sub='other')}",
    "a token and a remark": lambda d: f"Bearer {d.one.good()} x",
}

PASSES: dict[str, Make] = {
    "a good token": lambda d: "Bearer " + d.one.good(),
    "a token of the second key": lambda d: "Bearer " + d.two.good(),
    "the scheme in lower case": lambda d: "bearer " + d.one.good(),
    "the scheme in upper case": lambda d: "BEARER " + d.one.good(),
    "several spaces after the scheme": lambda d: "Bearer   " + d.one.good(),
    "an audience list that begins with ours": lambda d: "Bearer " + d.one.good(aud=["breakwater-api", "x"]),
    "begun in the past": lambda d: "Bearer " + d.one.good(nbf=int(time.time()) - 60),
    "exp with a fraction": lambda d: "Bearer " + d.one.good(exp=time.time() + 60.5),
    "no scope": lambda d: "Bearer " + d.one.good(scope=...),
    "a service's subject": lambda d: "Bearer " + d.one.good(sub="service:orders", scope="service"),
}


def _with_exp(literal: str) -> str:
    return json.dumps(claims(exp="EXP")).replace('"EXP"', literal)


def _swap(token: str) -> str:
    head, _, signature = token.split(".")
    return f"{head}.{b64(str(claims(sub='root')).replace(chr(39), chr(34)).encode())}.{signature}"


BREAKERS = "/edge/breakers/business/users"
"""Changes how every client is served."""


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_bad_token_is_refused_and_reaches_no_instance(door: Door, make: Make) -> None:
    authorization = make(door)
    # The second time finds whatever the first has left in the memory of tokens.
    for path, method in (
        ("/api/locked/x", "GET"),
        ("/api/locked/x", "GET"),
        (BREAKERS, "GET"),
        (BREAKERS, "POST"),
    ):
        assert door.ask(authorization, path, method) == 401
        assert door.upstream.requests == []


@pytest.mark.parametrize("make", PASSES.values(), ids=PASSES.keys())
def test_good_token_passes_with_its_subject(door: Door, make: Make) -> None:
    authorization = make(door)
    for path in ("/api/locked/x", "/api/locked/x", BREAKERS):
        assert door.ask(authorization, path) == 200
        (request,) = door.upstream.requests
        assert request.target == path
        assert request.header("x-auth-subject") in ("user-1", "service:orders")
        assert request.header("authorization") == authorization


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("//edge/breakers", 400),
        ("/edge//breakers", 400),
        ("/x/../edge/breakers", 400),
        ("/edge/breakers/../../api", 400),
        ("/edge/breakers;x", 400),
        ("/edge%2fbreakers", 400),
        ("/edge/breakers%00", 400),
        ("/%65dge/breakers", 401),
        ("/edge/%62reakers/", 401),
        ("http://edge.test/edge/breakers", 401),
        ("/api/gateway-business/../../../edge/breakers", 400),
    ],
)
def test_no_spelling_of_the_breakers_path_needs_no_token(door: Door, path: str, status: int) -> None:
    assert door.ask(None, path) == status
    assert door.upstream.requests == []


def test_scope_is_passed_on_as_it_stands(door: Door) -> None:
    door.ask("Bearer " + door.one.good(scope="user admin"))
    assert door.upstream.requests[0].header("x-auth-scope") == "user admin"
    door.ask("Bearer " + door.one.good(scope=...))
    assert door.upstream.requests[0].header("x-auth-scope") is None


def test_no_token_is_401_with_a_challenge(door: Door) -> None:
    answer = door.edge.get("/api/locked/x")
    assert answer.status == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert door.ask(None) == 401
    assert door.upstream.requests == []


@pytest.mark.parametrize("order", ["good first", "good last", "good twice"])
def test_two_authorization_headers_are_refused(door: Door, order: str) -> None:
    good, other = "Bearer " + door.one.good(), "Bearer " + door.one.good(sub="other")
    first, second = {"good first": (good, "Bearer x"), "good last": ("Bearer x", good)}.get(
        order, (good, other)
    )
    door.upstream.requests.clear()
    for path in (b"/api/locked/x", b"/api/open/x"):
        request = b"GET %s HTTP/1.1\r\nHost: a\r\nAuthorization: %s\r\nAuthorization: %s\r\nConnection: close\r\n\r\n"
        answer = door.edge.raw(request % (path, first.encode(), second.encode()))
        assert answer.startswith(b"HTTP/1.1 400 ")
    assert door.upstream.requests == []


def test_remembered_token_is_refused_once_it_has_expired(door: Door) -> None:
    expires = int(time.time()) + 2
    token = "Bearer " + door.one.good(exp=expires)
    assert door.ask(token) == 200
    assert int(door.edge.command("show table tokens").split("used:")[1].split()[0]) > 0
    time.sleep(max(0.0, expires - time.time()) + 0.05)
    assert door.ask(token) == 401
    assert door.upstream.requests == []


def test_only_tokens_that_passed_are_remembered(door: Door) -> None:
    door.edge.command("clear table tokens")
    for make in REFUSED.values():
        door.ask(make(door))
    remembered = door.edge.command("show table tokens")
    # Signed, meant for us, and expired or without an expiry: they have passed all that is remembered, and are refused each time.
    assert all("gpc0=1" in line for line in remembered.splitlines()[1:] if line.strip())
    assert len(remembered.splitlines()) - 2 <= 13
    door.edge.command("clear table tokens")
    for number in range(20):
        door.ask("Bearer " + door.stray.sign(claims(jti=str(number)), kid="key-1"))
    assert "used:0" in door.edge.command("show table tokens")


def test_a_token_is_verified_once(door: Door) -> None:
    door.edge.command("clear table tokens")
    token = "Bearer " + door.one.good()
    for _ in range(5):
        assert door.ask(token) == 200
    (line,) = [x for x in door.edge.command("show table tokens").splitlines() if "gpc0" in x]
    assert "gpc0=1" in line


def test_public_route_ignores_a_bad_token_and_tells_no_subject(door: Door) -> None:
    for make in (REFUSED["an API key"], REFUSED["another scheme"], REFUSED["expired"], REFUSED["alg none"]):
        assert door.ask(make(door), "/api/open/x") == 200
        assert door.upstream.requests[0].header("x-auth-subject") is None


def test_public_route_tells_the_subject_of_a_good_token(door: Door) -> None:
    assert door.ask("Bearer " + door.one.good(), "/api/open/x") == 200
    assert door.upstream.requests[0].header("x-auth-subject") == "user-1"


@pytest.mark.parametrize(
    ("method", "status"),
    [("GET", 200), ("HEAD", 200), ("OPTIONS", 401), ("POST", 401), ("DELETE", 401), ("get", 401)],
)
def test_read_public_is_open_to_reading_only(door: Door, method: str, status: int) -> None:
    assert door.ask(None, "/api/read/x", method) == status
    if status == 401:
        assert door.ask("Bearer " + door.one.good(), "/api/read/x", method) == 200


PREFLIGHT = {"Origin": "http://app.test", "Access_Control_Request_Method": "POST"}


@pytest.mark.parametrize("path", ["/api/locked/x", "/api/read/x", "/api/open/x"])
def test_preflight_reaches_the_service_whatever_its_lock(door: Door, path: str) -> None:
    door.upstream.requests.clear()
    assert door.edge.get(path, "OPTIONS", **PREFLIGHT).status == 200
    (request,) = door.upstream.requests
    assert request.header("x-auth-subject") is None


@pytest.mark.parametrize(
    ("method", "headers"),
    [("POST", PREFLIGHT), ("OPTIONS", {"Origin": "http://app.test"})]
    + [("OPTIONS", PREFLIGHT | {name: "x"}) for name in ("Cookie", "Authorization", "X_Api_Key")],
)
def test_what_is_no_preflight_meets_the_lock(door: Door, method: str, headers: dict[str, str]) -> None:
    door.upstream.requests.clear()
    assert door.edge.get("/api/locked/x", method, **headers).status == 401
    assert door.upstream.requests == []


def test_without_keys_nothing_passes(tmp_path: Path) -> None:
    issuer = Issuer.make("key-1", tmp_path)
    with (
        Upstream("locked") as upstream,
        edge(EdgeState((backend("locked", upstream.port, auth="jwt"),))) as running,
    ):
        assert running.get("/api/locked/x", Authorization="Bearer " + issuer.good()).status == 401


LINES: dict[str, tuple[str, Any]] = {
    "iss": ("!token_issuer", "another issuer"),
    "aud": ("!token_audience", "another audience"),
    "nbf": ("!token_begun", "not yet begun"),
    "sub": ("!token_subject", "a subject that ends the header"),
    "signature": ("!token_signed", "a signature of a stranger"),
}


@pytest.mark.parametrize(("condition", "attack"), one_always(*LINES.values()), ids=LINES.keys())
def test_the_table_notices_a_condition_that_is_gone(tmp_path: Path, condition: str, attack: str) -> None:
    issuer = Issuer.make("key-1", tmp_path)
    stray = Issuer.make("stray", tmp_path)
    with Upstream("locked") as upstream:
        state = EdgeState((backend("locked", upstream.port, auth="jwt"),), (issuer.verify_key,))
        with edge(state, alter=(condition, "{ always_false }")) as running:
            door = Door(running, upstream, issuer, issuer, stray)
            assert door.ask(REFUSED[attack](door)) != 401
