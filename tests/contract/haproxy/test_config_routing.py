"""Which request goes where: the same table for the two ways in which the configuration dispatches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from haproxy.controller.config import template as rendering
from haproxy.controller.config.model import Backend, EdgeState, Server
from haproxy.controller.settings import EdgeSettings
from tests.support.edge import CROSSED, Edge, backend, edge, valid
from tests.support.eventually import eventually, time_scale
from tests.support.matrix import one_always
from tests.support.recorder import Upstream
from tests.support.tokens import Issuer

GATEWAYS = ("gateway-business", "gateway-identity", "gateway-ai")
NAMES = (*GATEWAYS, "users", "posts", "orders", "dying", "rogue", "admin")


@dataclass
class Town:
    """An edge with several services; `up` holds one instance for each name."""

    edge: Edge
    up: dict[str, Upstream]
    issuer: Issuer

    def served(self, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, str]:
        """With a good token: status, and the instance that answered."""
        headers = {"Authorization": f"Bearer {self.issuer.good()}"}
        answer = self.edge.get(path, method, body, **headers)
        return answer.status, answer.headers.get("x-served-by", "")

    def close(self, name: str) -> None:
        self.up[name].__exit__()

    def open(self, name: str) -> None:
        self.up[name] = Upstream(name, port=self.up[name].port).__enter__()


def backends(up: dict[str, Upstream], crossed: bool) -> tuple[Backend, ...]:
    made = [
        backend("users", up["users"].port, domain="identity"),
        backend("posts", up["posts"].port, paths=("/api/posts", "/api/articles")),
        backend("gateway-business", up["gateway-business"].port, paths=("/api/composed", "/api")),
        backend("gateway-identity", up["gateway-identity"].port, paths=("/api/gateway/identity",)),
        backend("gateway-ai", up["gateway-ai"].port, paths=("/api/gateway/ai",)),
        backend("orders", up["orders"].port, lane="gateway"),
        backend("chat", paths=("/v1", "/chat"), domain="ai", lane="gateway"),
        backend("empty", domain="identity"),
        backend("dying", up["dying"].port),
        backend("rogue", up["rogue"].port, paths=("/metrics", "/internal/users", "/api/rogue")),
        # An operator may pin a prefix inside another's, and a gateway holds one around all others.
        backend("admin", up["admin"].port, paths=("/api/users/admin",)),
    ]
    made += CROSSED if crossed else ()
    return tuple(sorted(made, key=lambda b: b.name))


@pytest.fixture(scope="module", params=["acls", "map"])
def town(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    up = {name: Upstream(name).__enter__() for name in NAMES}
    issuer = Issuer.make("key-1", tmp_path_factory.mktemp("keys"))
    crossed = request.param == "map"
    try:
        with edge(EdgeState(backends(up, crossed), (issuer.verify_key,))) as running:
            assert ("acl is_users " in running.settings.config_path.read_text()) is not crossed
            yield Town(running, up, issuer)
    finally:
        for upstream in up.values():
            upstream.__exit__()


ROUTES = {
    "/api/users": "users-1",
    "/api/users/": "users-1",
    "/api/users/1/x": "users-1",
    "/api/users?x=/api/posts": "users-1",
    "/api/posts/1": "posts-1",
    "/api/articles": "posts-1",
    "/api/composed/x": "gateway-business-1",
    "/api/orders/1": "gateway-business-1",
    "/api/rogue": "rogue-1",
    "/api": "gateway-business-1",
    "/api/usersX": "gateway-business-1",
    "/api/0123/4567": "gateway-business-1",
    "/api/users/admin/x": "admin-1",
    "/api/users/adminX": "users-1",
    "/api/empty/x": "gateway-identity-1",
    "/v1/models": "gateway-ai-1",
}


@pytest.mark.parametrize(("path", "instance"), ROUTES.items())
def test_path_finds_its_owner_by_the_longest_prefix(town: Town, path: str, instance: str) -> None:
    assert town.served(path) == (200, instance)


NOBODYS = ("/apiX", "/users", "/api.json", "/v1x", "/metrics", "/internal/users", "/", "/health/other")
UNDER_EDGE = ("/edge", "/edge/", "/edge/breakersX", "/edge/breaker", "/edge/status", "/EDGE/breakers")


@pytest.mark.parametrize("path", NOBODYS + UNDER_EDGE)
def test_path_of_nobody_is_404(town: Town, path: str) -> None:
    assert town.served(path) == (404, "")


def test_instance_is_told_the_route_also_through_a_gateway(town: Town) -> None:
    town.up["gateway-business"].requests.clear()
    answer = town.edge.get("/api/orders/1")
    assert answer.headers["x-served-lane"] == "gateway"
    assert town.up["gateway-business"].requests[0].header("x-edge-route") == "orders"
    assert town.edge.get("/api/users").headers["x-served-lane"] == "direct"


def test_dead_service_goes_to_its_gateway_and_back(town: Town) -> None:
    assert town.served("/api/dying") == (200, "dying-1")
    town.close("dying")
    eventually(lambda: town.served("/api/dying") == (200, "gateway-business-1"), 3)
    answer = town.edge.get("/api/dying")
    assert (answer.status, answer.headers["x-served-lane"]) == (200, "gateway")
    town.open("dying")
    eventually(lambda: town.served("/api/dying") == (200, "dying-1"), 2)


def test_edge_answers_for_its_own_health(town: Town) -> None:
    for path in ("/health/live", "/health/ready"):
        answer = town.edge.get(path)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


# -- the breakers are the edge's own, and any gateway answers for them


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
    town: Town, method: str, path: str, body: bytes
) -> None:
    town.up["gateway-business"].requests.clear()
    assert town.served(path, method, body) == (200, "gateway-business-1")
    (seen,) = town.up["gateway-business"].requests
    assert (seen.method, seen.target, seen.body) == (method, path, body)
    assert seen.header("x-edge-route") == "edge"
    assert seen.header("x-auth-subject") == "user-1"


def test_the_next_gateway_answers_when_one_is_dead_and_503_at_once_when_all_are(town: Town) -> None:
    for name, following in zip(GATEWAYS, (*GATEWAYS[1:], None), strict=True):
        assert town.served("/edge/breakers") == (200, f"{name}-1")
        town.close(name)
        expected = (200, f"{following}-1") if following else (503, "")
        eventually(lambda expected=expected: town.served("/edge/breakers") == expected, 5)
    for path in ("/edge/breakers", "/api/empty/x", "/v1/models", "/chat"):
        start = time.monotonic()
        answer = town.edge.get(path, Authorization=f"Bearer {town.issuer.good()}")
        assert (answer.status, int(answer.headers["retry-after"]) >= 1) == (503, True)
        assert time.monotonic() - start < 0.25 * time_scale()
    assert town.served("/api/users/1") == (200, "users-1"), "other routes do not mind"
    for name in GATEWAYS:
        town.open(name)
    eventually(lambda: town.served("/edge/breakers") == (200, "gateway-business-1"), 5)


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


def many(count: int, per_service: int) -> EdgeState:
    return EdgeState(
        tuple(
            Backend(
                backend(f"s{number:04}").route,
                tuple(
                    Server(f"s{number:04}-{n}", f"127.0.{number % 250}.{n + 1}", 9000 + n)
                    for n in range(per_service)
                ),
            )
            for number in range(count)
        )
    )


@pytest.mark.parametrize("count", one_always(100, 1000))
def test_a_thousand_services_load_quickly_and_route_rightly(tmp_path: Path, count: int) -> None:
    state, middle = many(count, 3), f"s{count // 2:04}"
    settings = EdgeSettings(edge_dir=tmp_path / "edge", edge_run_dir=tmp_path)
    start = time.monotonic()
    rendering.prepare_files(state, settings)
    settings.config_path.write_text(rendering.render(state, settings))
    rendered = time.monotonic()
    assert valid(settings.config_path) == ""
    assert rendered - start < 5
    assert time.monotonic() - rendered < 5 * time_scale()
    with Upstream(middle) as upstream:
        kept = [b for b in state.backends if b.route.service != middle]
        lone = Backend(backend(middle).route, (Server(f"{middle}-1", "127.0.0.1", upstream.port),))
        with edge(EdgeState(tuple(sorted([*kept, lone], key=lambda b: b.name)))) as running:
            assert running.get(f"/api/{middle}/x").headers["x-served-by"] == f"{middle}-1"
            assert running.get(f"/api/{middle}x").status == 404


def test_thousands_of_servers_are_checked_less_often() -> None:
    route = backend("users").route
    server = Server("users-1", "127.0.0.1", 9000)
    assert rendering.pace(many(10, 3)) == 1
    assert rendering.pace(many(1000, 10)) == 5
    assert "inter 1s " in rendering.server_params(route, server)
    assert "inter 5s " in rendering.server_params(route, server, 5)
