"""`/edge/breakers` is the edge's own and any gateway answers it: the same for the two ways in which the configuration dispatches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from haproxy.controller.config.model import Backend, EdgeState
from tests.support.edge import CROSSED, Edge, backend, edge
from tests.support.eventually import eventually, time_scale
from tests.support.recorder import Upstream
from tests.support.tokens import Issuer

GATEWAYS = ("gateway-business", "gateway-identity", "gateway-ai")


@dataclass
class House:
    """An edge in front of one instance of each gateway, and of a service."""

    edge: Edge
    up: dict[str, Upstream]
    issuer: Issuer

    def ask(self, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, str]:
        """With a good token: status, and the instance that answered."""
        headers = {"Authorization": f"Bearer {self.issuer.good()}"}
        answer = self.edge.get(path, method, body, **headers)
        return answer.status, answer.headers.get("x-served-by", "")

    def close(self, name: str) -> None:
        self.up[name].__exit__()

    def open(self, name: str) -> None:
        self.up[name] = Upstream(name, port=self.up[name].port).__enter__()


def backends(up: dict[str, Upstream], crossed: bool) -> tuple[Backend, ...]:
    made = [backend(name, up[name].port, paths=(f"/api/gateway/{name}",)) for name in GATEWAYS]
    made.append(backend("users", up["users"].port))
    made += CROSSED if crossed else ()
    return tuple(sorted(made, key=lambda each: each.name))


@pytest.fixture(scope="module", params=["acls", "map"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    issuer = Issuer.make("key-1", tmp_path_factory.mktemp("keys"))
    up = {name: Upstream(name).__enter__() for name in (*GATEWAYS, "users")}
    crossed = request.param == "map"
    try:
        with edge(EdgeState(backends(up, crossed), (issuer.verify_key,))) as running:
            assert ("acl is_users " in running.settings.config_path.read_text()) is not crossed
            yield House(running, up, issuer)
    finally:
        for upstream in up.values():
            upstream.__exit__()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/edge/breakers", b""),
        ("GET", "/edge/breakers/", b""),
        ("GET", "/edge/breakers?x=1", b""),
        ("GET", "/edge/breakers/ai/chat", b""),
        ("POST", "/edge/breakers/business/users", b'{"state":"open"}'),
        ("DELETE", "/edge/breakers/business/users", b""),
    ],
)
def test_breakers_are_asked_of_a_gateway_once_and_whole(
    house: House, method: str, path: str, body: bytes
) -> None:
    house.up["gateway-business"].requests.clear()
    assert house.ask(path, method, body) == (200, "gateway-business-1")
    (seen,) = house.up["gateway-business"].requests
    assert (seen.method, seen.target, seen.body) == (method, path, body)
    assert seen.header("x-edge-route") == "edge"
    assert seen.header("x-auth-subject") == "user-1"


@pytest.mark.parametrize(
    "path",
    [
        "/edge",
        "/edge/",
        "/edge/breakersX",
        "/edge/breaker",
        "/edge/status",
        "/edge/metrics",
        "/EDGE/breakers",
    ],
)
def test_nothing_else_under_edge_is_routed(house: House, path: str) -> None:
    assert house.ask(path) == (404, "")


def test_the_next_gateway_answers_when_one_is_dead_and_503_when_all_are(house: House) -> None:
    for name, following in zip(GATEWAYS, (*GATEWAYS[1:], None), strict=True):
        assert house.ask("/edge/breakers") == (200, f"{name}-1")
        house.close(name)
        expected = (200, f"{following}-1") if following else (503, "")
        eventually(lambda expected=expected: house.ask("/edge/breakers") == expected, 5)
    begun = time.monotonic()
    answer = house.edge.get("/edge/breakers", Authorization=f"Bearer {house.issuer.good()}")
    assert time.monotonic() - begun < 1 * time_scale()
    problem = json.loads(answer.body)
    assert (answer.status, problem["status"], problem["layer"]) == (503, 503, "edge")
    assert int(answer.headers["retry-after"]) >= 1
    assert house.ask("/api/users/1") == (200, "users-1"), "other routes do not mind"
    for name in GATEWAYS:
        house.open(name)
    eventually(lambda: house.ask("/edge/breakers") == (200, "gateway-business-1"), 5)


def test_a_group_that_was_never_there_is_left_out(tmp_path: Path) -> None:
    issuer = Issuer.make("key-1", tmp_path)
    headers = {"Authorization": f"Bearer {issuer.good()}"}
    with Upstream("gateway-ai") as only:
        alone = backend("gateway-ai", only.port, paths=("/api/gateway/ai",))
        with edge(EdgeState((alone,), (issuer.verify_key,))) as running:
            assert running.get("/edge/breakers", **headers).headers["x-served-by"] == "gateway-ai-1"
    with edge(EdgeState((), (issuer.verify_key,))) as running:
        assert running.get("/edge/breakers", **headers).status == 503
        assert running.get("/edge/breakers").status == 401
