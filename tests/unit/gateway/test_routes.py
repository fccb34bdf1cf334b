"""Whose path it is, from snapshots alone."""

from __future__ import annotations

import time
from types import MappingProxyType

import pytest

from discovery.consul.static import StaticView
from discovery.contract import Policy, parse_networks
from discovery.model import Instance, Snapshot
from gateway.routes import Exposed, Routes
from tests.support.clock import ManualClock
from tests.support.eventually import time_scale


def one(service: str, path: str | None = None, *, index: int = 1, port: int = 20001, **meta: str) -> Instance:
    keys = {f"edge-{key}": value for key, value in meta.items()} | ({"edge-path": path} if path else {})
    return Instance(service, f"{service}-{index}", "node-1", "127.0.0.1", port, meta=keys, create_index=index)


def found(routes: Routes, path: str, named: str | None = None) -> str | None:
    route = routes.find(path, named)
    return route.service if route is not None else None


def routes_of(*instances: Instance) -> tuple[StaticView, Routes]:
    view = StaticView(instances)
    return view, Routes(Exposed(view, Policy()), "business")


def replace(view: StaticView, *instances: Instance) -> None:
    services: dict[str, tuple[Instance, ...]] = {}
    for each in instances:
        services[each.service] = (*services.get(each.service, ()), each)
    view.replace(Snapshot(MappingProxyType(services), view.snapshot().version + 1))


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/api/pears", "pears"),
        ("/api/pears/1", "pears"),
        ("/api/pears/ripe/1", "ripe"),
        ("/api/pearsX", "gateway-business"),
        ("/api", "gateway-business"),
        ("/apis", None),
        ("/", None),
        ("", None),
        ("/other", None),
        ("/api/pears" + "/a" * 4000, "pears"),
    ],
)
def test_the_longest_prefix_holds_whole_segments_only(path: str, service: str | None) -> None:
    _, routes = routes_of(
        one("pears", "/api/pears"), one("ripe", "/api/pears/ripe"), one("gateway-business", "/api")
    )
    assert found(routes, path) == service


def test_a_path_of_a_thousand_segments_costs_no_more_than_the_deepest_prefix() -> None:
    _, routes = routes_of(one("pears", "/api/pears"))
    began = time.perf_counter()
    for _ in range(1000):
        routes.find("/x" * 4000)
    assert time.perf_counter() - began < 1.0 * time_scale()


def test_of_two_that_ask_for_a_prefix_the_first_has_it_unless_the_edge_says_otherwise() -> None:
    _, routes = routes_of(one("late", "/api/x", index=9), one("early", "/api/x", index=2))
    assert found(routes, "/api/x/1") == "early"
    assert found(routes, "/api/x/1", "late") == "late"
    assert found(routes, "/api/x/1", "early") == "early"


def test_a_service_that_has_gone_is_remembered_until_it_is_back_without_a_route() -> None:
    view, routes = routes_of(one("pears", "/api/pears"), one("gateway-business", "/api"))
    assert found(routes, "/api/pears/1") == "pears"
    replace(view, one("gateway-business", "/api"))
    assert found(routes, "/api/pears/1") == "pears"
    assert found(routes, "/api/pears/1", "pears") == "pears"
    replace(view, one("gateway-business", "/api"), one("pears"))
    assert found(routes, "/api/pears/1") == "gateway-business"
    assert found(routes, "/api/pears/1", "pears") == "gateway-business"


def test_a_prefix_of_one_that_has_gone_goes_to_one_that_is_there() -> None:
    view, routes = routes_of(one("old", "/api/x", index=1))
    routes.follow()
    replace(view, one("new", "/api/x", index=2))
    assert found(routes, "/api/x") == "new"


def test_an_unknown_service_is_believed_by_its_name_and_has_no_prefix() -> None:
    _, routes = routes_of(one("hidden"), one("gateway-business", "/api"))
    route = routes.find("/api/melons/1", "melons")
    assert route is not None
    assert (route.service, route.paths, route.domain) == ("melons", (), "business")
    assert found(routes, "/api/melons/1", "hidden") == "gateway-business"
    assert found(routes, "/api/melons/1", "no name!") == "gateway-business"
    assert found(routes, "/elsewhere", "pears\n") is None


def test_instances_vote_on_the_route_and_a_tie_goes_to_the_newest() -> None:
    first, second, third = (
        one("a", "/api/a", index=1),
        one("a", "/api/b", index=2),
        one("a", "/api/b", index=3),
    )
    for instances, path in (
        ((first, second), "/api/b"),
        ((first, second, third), "/api/b"),
        ((first,), "/api/a"),
    ):
        _, routes = routes_of(*instances)
        assert found(routes, path) == "a"
        assert [each for each in ("/api/a", "/api/b") if found(routes, each)] == [path]


def test_what_the_contract_refuses_is_not_in_the_view() -> None:
    policy = Policy(parse_networks("127.0.0.0/8"), frozenset({8500}))
    bad = [
        one("a", "/api/a", index=2, weight="0"),
        one("a", "/api/a", index=3, port=8500),
        one("a", "/api/../a", index=4),
        Instance("a", "a-5", "node-1", "169.254.169.254", 80, meta={"edge-path": "/api/a"}),
        Instance("a", "a\n6", "node-1", "127.0.0.1", 20006, meta={"edge-path": "/api/a"}),
        Instance("a", "a-7", "node-1", "127.0.0.1", 20007),  # asks for no route, unlike the other
    ]
    view = StaticView(
        [one("a", "/api/a", index=9), *bad, Instance("Not A Name", "x", "node-1", "127.0.0.1", 1)]
    )
    exposed = Exposed(view, policy)
    assert [each.id for each in exposed.snapshot().instances("a")] == ["a-9"]
    assert exposed.snapshot().instances("Not A Name") == ()
    assert exposed.snapshot() is exposed.snapshot()
    assert exposed.healthy
    assert exposed.age_s() == 0.0


def test_the_filter_follows_a_change_and_looks_again_at_what_changed_only() -> None:
    view, _ = routes_of()
    exposed = Exposed(view, Policy())
    steady = one("steady", port=20002)
    replace(view, steady, one("moved", index=1))
    before = exposed.snapshot()
    services = {"steady": view.snapshot().services["steady"], "moved": (one("moved", index=2),)}
    view.replace(Snapshot(MappingProxyType(services), 7))
    after = exposed.snapshot()
    assert after.version > before.version
    assert after.services["steady"] is before.services["steady"]
    assert [each.create_index for each in after.instances("moved")] == [2]


def test_a_place_of_another_service_is_not_in_the_view_and_the_identity_is_asked_for() -> None:
    victim = one("pears", "/api/pears", index=1)
    checked = one("melons", "/api/melons", index=2, check="/ping")
    squatter = one("plums", "/api/plums", index=3, **{"check-identity": "off"})
    inner = one("figs", index=4, **{"check-identity": "off"})
    exposed = Exposed(StaticView([victim, checked, squatter, inner]), Policy()).snapshot()
    assert [each.identity_path for each in exposed.instances("pears")] == ["/health/ready"]
    assert [each.identity_path for each in exposed.instances("melons")] == ["/ping"]
    assert exposed.instances("plums") == exposed.instances("figs") == ()


def test_a_place_that_is_given_up_is_in_the_view_without_a_change_in_consul() -> None:
    clock = ManualClock()
    follower = one("plums", "/api/plums", index=3, **{"check-identity": "off"})
    view = StaticView([one("pears", "/api/pears", index=1), follower])
    exposed = Exposed(view, Policy(), clock)
    assert exposed.snapshot().instances("plums") == ()
    replace(view, follower)
    assert exposed.snapshot().instances("plums") == ()
    clock.sleep(61)
    assert [each.id for each in exposed.snapshot().instances("plums")] == ["plums-3"]
