"""Registrations that lie, flap or get lost, under steady load."""

from __future__ import annotations

import time

import pytest

from tests.support.accounts import Account
from tests.support.actor import Actor, actor
from tests.support.eventually import eventually, time_scale
from tests.support.faults import (
    assert_nothing_lost,
    edge_holds,
    guest,
    passing,
    steady_gets,
    until_served_by,
)
from tests.support.fleet import Fleet, Member
from tests.support.servers import free_port

pytestmark = pytest.mark.needs_stack


def test_forgotten_instance_registers_again_within_10_s_and_costs_no_request(
    fleet: Fleet, account: Account
) -> None:
    victim = fleet.instances("users")[0]
    with steady_gets(fleet, account) as load:
        until_served_by(load, victim)
        fleet.consul("PUT", f"/v1/agent/service/deregister/{victim.id}")
        forgotten_s = time.monotonic()
        assert victim.id not in passing(fleet, "users"), "the agent did not forget"
        eventually(lambda: victim.id in passing(fleet, "users"), 15)
        known_s = time.monotonic()
        fleet.wait_healthy(15)
        until_served_by(load, victim)
    assert known_s - forgotten_s < 10.0 * time_scale()
    report = load.report()
    assert_nothing_lost(fleet, report)
    assert report.last_answer_of(victim.id) > known_s, "it was not taken back into rotation"


def test_port_reused_by_another_service_gets_no_request(fleet: Fleet, account: Account) -> None:
    former = Actor("users", "users-former")
    former.listen()
    with steady_gets(fleet, account) as load, guest(fleet, former):
        eventually(lambda: former.requests > 5, 10)
        fault_s = time.monotonic()
        former.close()
        eventually(lambda: edge_holds(fleet, "users", former.instance_id, up=False), 5)
        # Consul still holds the registration, and its check still passes: only the edge's own check can tell.
        with actor("posts", "posts-latter", port=former.port) as latter:
            time.sleep(3)
            assert former.instance_id in passing(fleet, "users")
            assert latter.requests == 0
            assert edge_holds(fleet, "users", former.instance_id, up=False)
    ended = Member("users", former.instance_id, former.port, 0)
    assert_nothing_lost(fleet, load.report(), killed=ended, fault_s=fault_s)


def test_instance_registered_before_it_listens_costs_no_request_and_serves_once_it_does(
    fleet: Fleet, account: Account
) -> None:
    early = Actor("users", "users-early", port=free_port())
    with steady_gets(fleet, account) as load, guest(fleet, early):
        eventually(lambda: edge_holds(fleet, "users", early.instance_id, up=False), 10)
        time.sleep(1)
        assert early.requests == 0
        early.listen()
        listening_s = time.monotonic()
        eventually(lambda: early.requests > 0, 10)
        assert time.monotonic() - listening_s < 5.0 * time_scale()
        time.sleep(0.5)
    assert_nothing_lost(fleet, load.report())


def test_flapping_check_costs_no_request_and_no_reload(fleet: Fleet, account: Account) -> None:
    with (
        actor("users", "users-flapping") as flapping,
        steady_gets(fleet, account) as load,
        guest(fleet, flapping),
    ):
        eventually(lambda: flapping.requests > 0, 10)
        reloads = fleet.reloads()
        seen = set()
        for turn in range(20):
            state = ("fail", "pass")[turn % 2]
            fleet.consul("PUT", f"/v1/agent/check/{state}/service:{flapping.instance_id}")
            time.sleep(0.25)
            seen.add(edge_holds(fleet, "users", flapping.instance_id, up=True))
        assert seen == {True, False}, "the edge did not follow the flapping"
        assert fleet.reloads() == reloads
        eventually(lambda: edge_holds(fleet, "users", flapping.instance_id, up=True), 5)
    assert_nothing_lost(fleet, load.report())
