"""Consul, the controller and reloads, under steady load: the edge serves on with what it knows."""

from __future__ import annotations

import contextlib
import time

import pytest

from tests.support.accounts import Account, ask
from tests.support.actor import Actor, actor
from tests.support.eventually import eventually, time_scale
from tests.support.faults import (
    assert_nothing_lost,
    deregister,
    edge_holds,
    guest,
    passing,
    register,
    route_of,
    steady_gets,
)
from tests.support.fleet import Fleet

pytestmark = pytest.mark.needs_stack

NEW_ROUTES = 10
CONSUL_OUTAGE_S = 60


@contextlib.contextmanager
def consul_down(fleet: Fleet, *, empty: bool = False):  # type: ignore[no-untyped-def]
    """Consul killed for as long as the context lasts, and back afterwards, with `empty` having forgotten everything."""
    fleet.kill_server("consul")
    try:
        yield
    finally:
        if empty:
            fleet.empty_consul()
        fleet.start_server("consul")
        eventually(lambda: fleet.consul("GET", "/v1/acl/token/self"), 30)


@contextlib.contextmanager
def controller_down(fleet: Fleet):  # type: ignore[no-untyped-def]
    fleet.kill_server("controller")
    try:
        yield
    finally:
        fleet.start_server("controller")


@pytest.mark.long
def test_ten_reloads_by_ten_new_routes_cost_no_request(fleet: Fleet, account: Account) -> None:
    before = fleet.reloads()
    with contextlib.ExitStack() as stack, steady_gets(fleet, account) as load:
        time.sleep(1)
        for number in range(NEW_ROUTES):
            name, path = f"new-{number}", f"/api/new-{number}"
            assert ask(fleet.edge_port, "GET", path).status == 404
            one = stack.enter_context(actor(name, f"{name}-1"))
            stack.enter_context(guest(fleet, one, {"edge-path": path, "edge-auth": "public"}))
            eventually(lambda path=path: ask(fleet.edge_port, "GET", path).status == 200, 10)
        assert fleet.reloads() - before >= NEW_ROUTES
        time.sleep(1)
    assert_nothing_lost(fleet, load.report())


def test_controller_killed_in_mid_change_converges_when_it_is_back(fleet: Fleet, account: Account) -> None:
    route = route_of(fleet, "users")
    actors = [Actor("users", f"users-guest-{number}") for number in range(6)]
    with contextlib.ExitStack() as stack, steady_gets(fleet, account) as load:
        for one in actors:
            one.listen()
            stack.callback(one.close)
            stack.callback(deregister, fleet, one.instance_id)
        for one in actors[:3]:
            register(fleet, one, route)
        with controller_down(fleet):
            held = {s.name for s in fleet.edge_servers("users")}
            for one in actors[3:]:
                register(fleet, one, route)
            deregister(fleet, actors[0].instance_id)
            time.sleep(1)
            assert not {a.instance_id for a in actors[3:]} & {s.name for s in fleet.edge_servers("users")}, (
                held
            )
        back_s = time.monotonic()
        wanted = {m.id for m in fleet.instances("users")} | {one.instance_id for one in actors[1:]}
        eventually(lambda: {s.name for s in fleet.edge_servers("users") if s.up} == wanted, 15)
        assert time.monotonic() - back_s < 10.0 * time_scale()
    assert_nothing_lost(fleet, load.report())


@pytest.mark.long
def test_consul_killed_for_a_minute_costs_no_request_and_is_followed_again(
    fleet: Fleet, account: Account
) -> None:
    controller = fleet.server_pid("controller")
    with steady_gets(fleet, account, rate_per_s=50) as load:
        with consul_down(fleet):
            down_s = time.monotonic()
            while time.monotonic() - down_s < CONSUL_OUTAGE_S:
                with pytest.raises(OSError):
                    fleet.consul("GET", "/v1/status/leader")
                time.sleep(2)
            assert len([s for s in fleet.edge_servers("users") if s.up]) == fleet.services()["users"]
        back_s = time.monotonic()
        with actor("users", "users-after") as after, guest(fleet, after):
            eventually(lambda: after.requests > 0, 15)
            followed_s = time.monotonic() - back_s
        fleet.wait_healthy(30)
    assert fleet.server_pid("controller") == controller, "the controller was restarted"
    assert followed_s < 10.0 * time_scale()
    assert_nothing_lost(fleet, load.report())


def test_consul_restarted_empty_costs_no_request_and_is_filled_again(fleet: Fleet, account: Account) -> None:
    with steady_gets(fleet, account) as load:
        eventually(lambda: load.report().good(), 5)
        with consul_down(fleet, empty=True):
            time.sleep(1)
        empty_s = time.monotonic()
        eventually(lambda: len(passing(fleet, "users")) == fleet.services()["users"], 20)
        filled_s = time.monotonic()
        fleet.wait_healthy(30)
    assert filled_s - empty_s < 15.0 * time_scale()
    assert_nothing_lost(fleet, load.report())
    assert edge_holds(fleet, "users", fleet.instances("users")[0].id, up=True)
