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


@dataclass
class Town:
    """An edge with several services; `up` holds one instance for each name."""

    edge: Edge
    up: dict[str, Upstream]

    def served(self, path: str) -> tuple[int, str]:
        """Status, and the instance that answered."""
        answer = self.edge.get(path)
        return answer.status, answer.headers.get("x-served-by", "")


def backends(up: dict[str, Upstream], crossed: bool) -> tuple[Backend, ...]:
    made = [
        backend("users", up["users"].port, domain="identity"),
        backend("posts", up["posts"].port, paths=("/api/posts", "/api/articles")),
        backend("gateway-business", up["gateway-business"].port, paths=("/api/composed", "/api")),
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


NAMES = ("users", "posts", "gateway-business", "orders", "dying", "rogue", "admin")


@pytest.fixture(scope="module", params=["acls", "map"])
def town(request: pytest.FixtureRequest) -> Iterator[Town]:
    up = {name: Upstream(name) for name in NAMES}
    for upstream in up.values():
        upstream.__enter__()
    crossed = request.param == "map"
    try:
        with edge(EdgeState(backends(up, crossed))) as running:
            assert ("acl is_users " in running.settings.config_path.read_text()) is not crossed
            yield Town(running, up)
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
}


@pytest.mark.parametrize(("path", "instance"), ROUTES.items())
def test_path_finds_its_owner(town: Town, path: str, instance: str) -> None:
    assert town.served(path) == (200, instance)


@pytest.mark.parametrize("path", ["/apiX", "/users", "/api.json", "/v1x", "/metrics", "/internal/users", "/"])
def test_path_of_nobody_is_404(town: Town, path: str) -> None:
    assert town.served(path) == (404, "")


def test_longest_prefix_wins(town: Town) -> None:
    assert town.served("/api/users/admin/x") == (200, "admin-1")
    assert town.served("/api/users/adminX") == (200, "users-1")


def test_instance_is_told_the_route_also_through_a_gateway(town: Town) -> None:
    town.up["gateway-business"].requests.clear()
    answer = town.edge.get("/api/orders/1")
    assert answer.headers["x-served-lane"] == "gateway"
    assert town.up["gateway-business"].requests[0].header("x-edge-route") == "orders"
    assert town.edge.get("/api/users").headers["x-served-lane"] == "direct"


@pytest.mark.parametrize("path", ["/api/empty/x", "/v1/models", "/chat"])
def test_route_without_anybody_is_503_at_once(town: Town, path: str) -> None:
    start = time.monotonic()
    answer = town.edge.get(path)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert time.monotonic() - start < 0.25 * time_scale()


def test_dead_service_goes_to_its_gateway_and_back(town: Town) -> None:
    assert town.served("/api/dying") == (200, "dying-1")
    port = town.up["dying"].port
    town.up["dying"].__exit__()
    eventually(lambda: town.served("/api/dying") == (200, "gateway-business-1"), 3)
    answer = town.edge.get("/api/dying")
    assert (answer.status, answer.headers["x-served-lane"]) == (200, "gateway")
    town.up["dying"] = Upstream("dying", port=port).__enter__()
    eventually(lambda: town.served("/api/dying") == (200, "dying-1"), 2)


def test_edge_answers_for_its_own_health(town: Town) -> None:
    for path in ("/health/live", "/health/ready"):
        answer = town.edge.get(path)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert town.edge.get("/health/other").status == 404


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
