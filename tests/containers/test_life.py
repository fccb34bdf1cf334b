"""Containers come, go, lose their network and change in number, under steady load through the published port.

The long cases: make test-compose ARGS="-m 'needs_stack and long' tests/containers"
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import pytest

from tests.containers import inside
from tests.support.accounts import Account, ask, new_account
from tests.support.container_fleet import SERVERS, ContainerFleet
from tests.support.eventually import eventually, time_scale
from tests.support.faults import (
    assert_nothing_lost,
    edge_holds,
    passing,
    serving,
    steady_gets,
    steady_posts,
    until_served_by,
)
from tests.support.fleet import Fleet, Member
from tests.support.load import Load, Plan, Report
from tests.support.matrix import one_always

pytestmark = pytest.mark.needs_stack

# A server that is being restarted: what is asked of it meanwhile waits no longer than this for an answer, and afterwards is
# served again as soon as that.
SLOWEST_S = 5.0
BACK_S = 5.0
EDGE_AWAY_S = 3.0


@pytest.fixture
def containers(fleet: Fleet) -> ContainerFleet:
    return cast(ContainerFleet, fleet)


def lives(fleet: ContainerFleet) -> dict[str, tuple[str, str]]:
    """Name → id and last start, by Docker's clock, of every container that runs."""
    return {
        str(one.name): (str(one.id), str(one.attrs["State"]["StartedAt"])) for one in inside.running(fleet)
    }


# -- one instance


def test_stopped_container_drains_and_ends_well(containers: ContainerFleet, account: Account) -> None:
    victim = serving(containers, account, "posts", "/api/posts")
    reading = Plan(containers.edge_port, ("/api/posts?limit=1",), headers=account.headers(), rate_per_s=40)
    with Load(reading) as gets, steady_posts(containers, account) as posts:
        until_served_by(gets, victim)
        until_served_by(posts, victim)
        fault_s = time.monotonic()
        containers.stop_member(victim)
        time.sleep(0.5)
        ended = containers.of(victim).attrs["State"]
    for report in (gets.report(), posts.report()):
        assert report.since(0, fault_s).served()[victim.id] > 0, "the victim served nothing"
        assert set(report.since(fault_s).served()) - {victim.id}, "no other instance answered"
        assert_nothing_lost(containers, report)
    assert (ended["Status"], ended["ExitCode"], ended["OOMKilled"]) == ("exited", 0, False)


@contextlib.contextmanager
def killed(fleet: ContainerFleet, member: Member) -> Iterator[None]:
    one = fleet.of(member)
    one.kill()
    try:
        eventually(lambda: fleet.of(member).status == "exited", 5)
        yield
    finally:
        one.start()


@contextlib.contextmanager
def cut_off(fleet: ContainerFleet, member: Member) -> Iterator[None]:
    one = fleet.of(member)
    fleet.leave(one, "fleet")
    try:
        assert not fleet.address(fleet.of(member), "fleet")
        yield
    finally:
        fleet.join(one, "fleet")


FAULTS: Mapping[str, Callable[[ContainerFleet, Member], AbstractContextManager[None]]] = {
    "killed": killed,
    "paused": ContainerFleet.hang,
    "cut off": cut_off,
}


# Service → a path that its instances answer themselves.
OWN_PATHS = {"users": "/api/users/{id}", "gateway-business": "/api/gateway/business"}


# What dies and what hangs is asked of containers in tests/resilience, too; a network that is lost, here alone.
@pytest.mark.parametrize(
    ("fault", "service"),
    one_always(
        ("cut off", "users"),
        ("cut off", "gateway-business"),
        *((fault, service) for fault in ("killed", "paused") for service in OWN_PATHS),
    ),
)
def test_lost_container_costs_no_get_and_serves_again(
    containers: ContainerFleet, account: Account, fault: str, service: str
) -> None:
    victim = containers.instances(service)[0]
    path = OWN_PATHS[service].format(id=account.id)
    with Load(Plan(containers.edge_port, (path,), headers=account.headers(), connections=32)) as load:
        until_served_by(load, victim)
        fault_s = time.monotonic()
        with FAULTS[fault](containers, victim):
            eventually(lambda: not edge_holds(containers, service, victim.id, up=True), 5)
            out_s = time.monotonic()
            time.sleep(1.5)
            back_s = time.monotonic()
        containers.wait_healthy(30)
        until_served_by(load, victim)
    report = load.report()
    assert report.since(0, fault_s).served()[victim.id] > 0, "the victim served nothing"
    assert_nothing_lost(containers, report, killed=victim if fault == "killed" else None, fault_s=fault_s)
    assert report.since(fault_s).latency_s(1.0) < SLOWEST_S * time_scale(), report.summary()
    gone = [a for a in report.good() if a.served_by == victim.id and out_s + 0.2 < a.ended_s < back_s]
    assert not gone, "it was not lost"
    assert report.last_answer_of(victim.id) > back_s, "it did not come back"


def test_container_that_comes_back_at_another_address_serves_from_there(
    containers: ContainerFleet, account: Account
) -> None:
    victim = containers.instances("users")[0]
    one = containers.of(victim)
    taken = {member.host for name in containers.services() for member in containers.instances(name)}
    free = reversed(list(ipaddress.ip_network(containers.environment["FLEET_RANGE"]).hosts()))
    address = next(str(one) for one in free if str(one) not in taken)
    with steady_gets(containers, account) as load:
        until_served_by(load, victim)
        containers.leave(one, "fleet")
        time.sleep(0.5)
        back_s = time.monotonic()
        containers.join(one, "fleet", address)
        eventually(lambda: registered_at(containers, victim) == address, 15)
        containers.wait_healthy(30)
        until_served_by(load, victim)
    report = load.report()
    assert_nothing_lost(containers, report)
    assert report.last_answer_of(victim.id) > back_s, "it did not come back"


def registered_at(fleet: ContainerFleet, member: Member) -> str:
    """The address that Consul knows of an instance."""
    found = fleet.consul("GET", f"/v1/catalog/service/{member.service}")
    return str(next(entry["ServiceAddress"] for entry in found if entry["ServiceID"] == member.id))


# -- how many


def test_scale_by_compose_changes_the_service_alone(containers: ContainerFleet, account: Account) -> None:
    before, secrets, reloads = lives(containers), inside.vault(containers), containers.reloads()
    with steady_gets(containers, account) as load:
        containers.compose("up", "--detach", "--no-build", "--scale", "users=5")
        eventually(lambda: len([s for s in containers.edge_servers("users") if s.up]) == 5, 30)
        five = lives(containers)
        eventually(lambda: len(load.report().served()) == 5, 10)
        containers.scale("users", 3)
        containers.wait_healthy(30)
    report = load.report()
    assert_nothing_lost(containers, report)
    assert {name: five[name] for name in before} == before
    assert len(five) == len(before) + 2
    assert lives(containers) == before
    assert inside.vault(containers) == secrets
    assert containers.reloads() == reloads


# -- servers


def restart(fleet: ContainerFleet, *services: str) -> float:
    """Stop and start these and nothing else; when they ran again."""
    before = lives(fleet)
    fleet.restart(*services)
    back_s = time.monotonic()
    names = {one.name for service in services for one in fleet.containers(service)}
    changed = {name for name, life in lives(fleet).items() if life != before[name]}
    assert changed == names
    return back_s


# What is restarted → a path that needs it to answer, once it is back.
UNNOTICED = {
    "consul": "/health/ready",
    "consul-tokens": "/health/ready",
    "redis-cache": "/health/ready",
    "redis-state": "/api/auth/.well-known/jwks.json",
    "controller": "/health/ready",
    "gateway-business": "/api/gateway/business",
}


# The others are killed in tests/resilience, on containers too.
@pytest.mark.parametrize(
    "service",
    [
        "consul-tokens",
        *one_always("redis-state", *sorted(UNNOTICED.keys() - {"consul-tokens", "redis-state"})),
    ],
)
def test_restart_costs_no_get_of_what_does_not_need_it(
    containers: ContainerFleet, account: Account, service: str
) -> None:
    with steady_gets(containers, account) as load:
        time.sleep(0.5)
        restart(containers, service)
        containers.wait_healthy(30)
        time.sleep(0.5)
    report = load.report()
    assert_nothing_lost(containers, report)
    assert report.latency_s(1.0) < SLOWEST_S * time_scale(), report.summary()
    eventually(lambda: ask(containers.edge_port, "GET", UNNOTICED[service]).status == 200, 10)
    somebody = new_account(containers.edge_port)
    assert somebody.ask("GET", f"/api/users/{somebody.id}").status == 200
    everybody = {member.id for member in containers.instances("users")}
    # A Consul that has just come back asks each instance once more.
    eventually(lambda: passing(containers, "users") == everybody, 15)


def bad(report: Report) -> set[Any]:
    """What failed, by status or, without any, by kind."""
    return {a.error or a.status for a in (*report.failures(), *report.cuts())}


def test_restart_of_postgres_makes_what_needs_it_wait_or_say_so(
    containers: ContainerFleet, account: Account
) -> None:
    other = Plan(containers.edge_port, ("/api/gateway/business", "/api/auth/.well-known/jwks.json"))
    reads, writes = steady_gets(containers, account), steady_posts(containers, account)
    with reads, writes, Load(other) as unconcerned:
        time.sleep(1)
        back_s = restart(containers, "postgres")
        containers.wait_healthy(30)
        time.sleep(1)
    assert_nothing_lost(containers, unconcerned.report())
    for report in (reads.report(), writes.report()):
        assert bad(report) <= {503}, report.summary()
        assert all(a.retry_after.isdigit() for a in report.failures())
        assert max(a.latency_s for a in report.answers) < SLOWEST_S * time_scale(), report.summary()
        assert report.recovered_within(back_s) < BACK_S * time_scale(), report.summary()
    somebody = new_account(containers.edge_port)
    assert somebody.ask("GET", f"/api/users/{somebody.id}").status == 200


def test_restart_of_the_edge_refuses_connections_for_a_moment_and_nothing_else(
    containers: ContainerFleet, account: Account
) -> None:
    with steady_gets(containers, account) as load:
        time.sleep(1)
        restart(containers, "haproxy")
        containers.wait_healthy(30)
        time.sleep(1)
    report = load.report()
    failed = report.failures()
    assert failed, "the edge was never away"
    assert not report.cuts(), report.summary()
    # Docker's own proxy before the container takes a connection and hangs up.
    assert bad(report) <= {"connect", "reset", "closed"}, report.summary()
    away_s = failed[-1].ended_s - failed[0].ended_s
    assert away_s < EDGE_AWAY_S * time_scale(), report.summary()


def test_restart_of_everything_loses_nothing_that_was_kept(
    containers: ContainerFleet, account: Account
) -> None:
    before, secrets = lives(containers), inside.vault(containers)
    made = account.ask("POST", "/api/posts", {"title": "Kept", "content": "text", "tags": []})
    assert made.status == 201
    restart(containers, *SERVERS, *containers.services())
    containers.wait_healthy(60)
    after = lives(containers)
    assert {name: id_ for name, (id_, _) in after.items()} == {name: id_ for name, (id_, _) in before.items()}
    assert not {at for _, at in after.values()} & {at for _, at in before.values()}, "not restarted"
    assert inside.vault(containers) == secrets
    eventually(lambda: account.ask("GET", f"/api/users/{account.id}").status == 200, 10)
    assert account.ask("GET", made.headers["location"]).status == 200
    with steady_gets(containers, account) as load:
        time.sleep(1)
    assert_nothing_lost(containers, load.report())
