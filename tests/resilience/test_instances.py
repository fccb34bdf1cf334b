"""One instance or all of a service fail, under steady load. Nothing that can be asked again is lost."""

from __future__ import annotations

import time

import pytest

from tests.support.accounts import Account, new_account
from tests.support.actor import actor
from tests.support.eventually import eventually, time_scale
from tests.support.faults import (
    Rotation,
    assert_nothing_lost,
    edge_holds,
    guest,
    passing,
    serving,
    steady_gets,
    steady_posts,
    until_served_by,
)
from tests.support.fleet import Fleet
from tests.support.load import Load, Plan
from tests.support.matrix import long_on_processes

pytestmark = pytest.mark.needs_stack


def test_killed_instance_costs_no_request_and_leaves_within_100_ms(fleet: Fleet, account: Account) -> None:
    victim = fleet.instances("users")[0]
    with steady_gets(fleet, account, rate_per_s=50) as load, Rotation(fleet, victim) as rotation:
        until_served_by(load, victim)
        fault_s = time.monotonic()
        fleet.kill(victim)
        eventually(lambda: rotation.out_s is not None, 5)
        fleet.wait_healthy(30)
        until_served_by(load, victim)
    report = load.report()
    assert report.since(0, fault_s).served()[victim.id] > 0, "the victim served nothing before the kill"
    assert_nothing_lost(fleet, report, killed=victim, fault_s=fault_s)
    assert report.recovered_within(fault_s) < 1.0 * time_scale()
    assert report.since(fault_s).latency_s(1.0) < 2.0 * time_scale(), report.summary()
    rotation.assert_left_in_time()
    successor = next(m for m in fleet.instances("users") if m.id == victim.id)
    assert successor.pid != victim.pid, "nothing was killed"
    assert report.last_answer_of(victim.id) > fault_s, "the instance did not come back into rotation"


def test_hung_instance_costs_no_request_and_serves_again_when_it_wakes(
    fleet: Fleet, account: Account
) -> None:
    victim = fleet.instances("users")[0]
    with steady_gets(fleet, account) as load:
        until_served_by(load, victim)
        fault_s = time.monotonic()
        with fleet.hang(victim):
            eventually(lambda: edge_holds(fleet, "users", victim.id, up=False), 10)
            out_s = time.monotonic()
            time.sleep(1)  # in which it must not be asked
        woken_s = time.monotonic()
        fleet.wait_healthy(30)
        until_served_by(load, victim)
    report = load.report()
    assert_nothing_lost(fleet, report)
    hung = report.since(fault_s, woken_s)
    assert hung.latency_s(1.0) < 5.0 * time_scale(), report.summary()
    assert out_s - fault_s < 5.0 * time_scale()
    during = [a for a in report.good() if a.served_by == victim.id and out_s + 0.1 < a.ended_s < woken_s]
    assert not during, "an instance that was stopped cannot have answered"
    assert report.last_answer_of(victim.id) > woken_s


@long_on_processes
def test_gracefully_stopped_instance_costs_no_get_and_no_post(fleet: Fleet, account: Account) -> None:
    victim = serving(fleet, account, "posts", "/api/posts")
    reading = Plan(fleet.edge_port, ("/api/posts?limit=1",), headers=account.headers(), rate_per_s=40)
    with Load(reading) as gets, steady_posts(fleet, account) as posts:
        until_served_by(gets, victim)
        until_served_by(posts, victim)
        fault_s = time.monotonic()
        fleet.stop_member(victim)
        stopped_s = time.monotonic()
        time.sleep(1)
        fleet.start("posts")
        fleet.wait_healthy(30)
    assert gets.report().since(0, fault_s).served()[victim.id] > 0
    assert posts.report().since(0, fault_s).served()[victim.id] > 0
    assert not [
        a
        for a in posts.report().answers
        if a.served_by == victim.id and stopped_s < a.ended_s < stopped_s + 0.5
    ]
    assert_nothing_lost(fleet, gets.report())
    assert_nothing_lost(fleet, posts.report())


@pytest.mark.long
def test_rolling_restart_of_a_service_costs_no_request(fleet: Fleet, account: Account) -> None:
    before = {member.id: member.pid for member in fleet.instances("users")}
    with steady_gets(fleet, account) as load:
        time.sleep(1)
        fault_s = time.monotonic()
        for member in fleet.instances("users"):
            fleet.stop_member(member)
            fleet.start("users")
            fleet.wait_healthy(30)
        time.sleep(0.5)
    after = {member.id: member.pid for member in fleet.instances("users")}
    assert set(after) == set(before)
    assert not set(after.values()) & set(before.values()), "an instance was not restarted"
    report = load.report()
    assert_nothing_lost(fleet, report)
    assert report.since(fault_s).latency_s(1.0) < 2.0 * time_scale(), report.summary()


def test_instance_that_answers_500_costs_no_get(fleet: Fleet, account: Account) -> None:
    with (
        actor("users", "users-faulty") as faulty,
        steady_gets(fleet, account) as load,
        guest(fleet, faulty),
    ):
        eventually(lambda: faulty.requests > 5, 10)
        faulty.status = 500
        fault_s, before = time.monotonic(), faulty.requests
        eventually(lambda: faulty.requests > before, 5)  # the fault is met
        time.sleep(1)
    report = load.report()
    assert_nothing_lost(fleet, report)
    assert report.recovered_within(fault_s) == 0.0


@long_on_processes
def test_all_instances_down_give_fast_503s_and_return_within_2_s(fleet: Fleet) -> None:
    """To a user that no answer is stored for; what the others get is in `test_gateways`."""
    nobody = new_account(fleet.edge_port)
    plan = Plan(
        fleet.edge_port, (f"/api/users/{nobody.id}",), headers=nobody.headers(), rate_per_s=50, timeout_s=5
    )
    fleet.stop("users")
    assert not passing(fleet, "users")
    with Load(plan) as load:
        eventually(lambda: len(load.report().failures()) > 50, 10)
        fleet.start("users")
        eventually(lambda: passing(fleet, "users"), 30, every_s=0.01)
        back_s = time.monotonic()
        fleet.wait_healthy(30)
        time.sleep(1)
    report = load.report()
    failed = report.failures()
    assert failed, "the service was never down"
    assert {a.status for a in failed} == {503}, report.summary()
    # Not from an instance that has just come back, either: it has auth's keys before it serves.
    assert {a.lane for a in failed} == {"gateway"}, report.summary()
    assert all(a.retry_after.isdigit() for a in failed)
    assert max(a.ended_s - a.due_s for a in failed) < 1.0 * time_scale(), report.summary()
    assert report.recovered_within(back_s) < 2.0 * time_scale()
