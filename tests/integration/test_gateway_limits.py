"""Limits that gateways share through a real Redis, and what becomes of them when it does not serve."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import uuid
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest
from redis import Redis

from gateway.errors import LimitExceeded
from gateway.limits.counts import PREFIX
from gateway.limits.ratelimit import Limits, LimitSettings, policies
from gateway.redis_link import RedisLink
from services.kit.redis_client import connect
from stack.servers.redis_servers import rules
from tests.support.eventually import eventually, time_scale
from tests.support.incoming import incoming, person
from tests.support.redis_faults import FAULTS, Fault
from tests.support.servers import RedisServer, redis

LIMIT = 1000
RATE_PER_S = 2000


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis() as started:
        yield started


def client(server: RedisServer) -> Redis:
    made = connect(server.url, None, timeout_s=0.1, connections=4)
    assert made is not None
    return made


def gateway(server: RedisServer | None, amount: int = LIMIT) -> Limits:
    settings = LimitSettings(policies("rate", f"{amount}/hour"))
    return Limits(settings, RedisLink(client(server) if server else None))


def subject() -> str:
    """A new subject, whose hour does not end within the test."""
    one = gateway(None)
    while True:
        name = uuid.uuid4().hex
        if one.counts(person(name))[0].left_s(time.time()) > 120:
            return name


def passes(one: Limits, name: str, times: int) -> int:
    """How many of so many requests were let through."""
    asked, count = incoming(who=person(name)), 0
    for _ in range(times):
        with contextlib.suppress(LimitExceeded):
            one.check(asked)
            count += 1
    return count


def known(server: RedisServer) -> int:
    """What all counters in Redis add up to."""
    direct = Redis.from_url(server.url)
    return sum(int(each) for key in direct.keys(f"{PREFIX}:*") for each in direct.hvals(key))  # type: ignore[union-attr]


def _gateway_process(url: str, name: str, per_s: float, seconds: float, pipe: Connection) -> None:
    """A gateway's limits under a steady load of one subject; tells how many passed."""
    redis_client = connect(url, None, timeout_s=0.1, connections=4)
    one = Limits(LimitSettings(policies("rate", f"{LIMIT}/hour")), RedisLink(redis_client))
    one.shared.start()
    asked = incoming(who=person(name))
    pipe.send("ready")
    pipe.recv()
    began, sent, passed = time.monotonic(), 0, 0
    while (elapsed := time.monotonic() - began) < seconds:
        while sent < elapsed * per_s:
            sent += 1
            with contextlib.suppress(LimitExceeded):
                one.check(asked)
                passed += 1
        time.sleep(0.002)
    one.shared.stop()
    pipe.send((sent, passed))


def run_together(server: RedisServer, name: str, per_s: float, seconds: float) -> list[tuple[int, int]]:
    """Two processes at once: what each sent and let through."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        arguments = (server.url, name, per_s, seconds, theirs)
        process = context.Process(target=_gateway_process, args=arguments, daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    try:
        for pipe in pipes:
            assert pipe.poll(30 * time_scale()), "a gateway did not start"
            pipe.recv()
        for pipe in pipes:
            pipe.send("go")
        for pipe in pipes:
            assert pipe.poll(30 * time_scale()), "a gateway did not end"
        return [pipe.recv() for pipe in pipes]
    finally:
        for process in processes:
            process.join(5)
            process.kill()


def test_two_processes_together_let_the_limit_through_and_little_more(server: RedisServer) -> None:
    name = subject()
    first, second = run_together(server, name, RATE_PER_S, 1.0)
    assert first[0] + second[0] > 3 * LIMIT, "not enough was asked for"
    assert min(first[1], second[1]) > LIMIT * 0.2, "one process had it all: nothing was shared"
    passed = first[1] + second[1]
    # What the other one sends in a tenth of a second at most.
    assert LIMIT <= passed <= LIMIT + 0.1 * RATE_PER_S * time_scale(), (first, second)


def test_new_process_learns_what_has_been_used(server: RedisServer) -> None:
    name = subject()
    old = gateway(server)
    assert passes(old, name, 700) == 700
    old.shared.settle()
    new = gateway(server)
    new.shared.start()
    try:
        passed = passes(new, name, 1)
        eventually(lambda: remaining(new, name) < 305, 2)
        passed += passes(new, name, 2000)
        assert 290 <= passed <= 301
    finally:
        new.shared.stop()


def remaining(one: Limits, name: str) -> int:
    (count,) = one.counts(person(name))
    return count.most - count.used(time.time())


def test_keys_are_hashed_and_end_with_their_window(server: RedisServer) -> None:
    direct = Redis.from_url(server.url)
    direct.flushall()
    one = gateway(server)
    passes(one, "alice@example.org", 3)
    one.shared.settle()
    (key,) = direct.keys("*")  # type: ignore[misc]
    assert key.startswith(PREFIX.encode() + b":")
    assert b"alice" not in key
    assert 0 < direct.ttl(key) <= 3600  # type: ignore[operator]
    assert [int(each) for each in direct.hvals(key)] == [3]  # type: ignore[union-attr]


def test_settlement_adds_each_request_once(server: RedisServer) -> None:
    Redis.from_url(server.url).flushall()
    name = subject()
    one, other = gateway(server), gateway(server)
    for _ in range(20):
        passes(one, name, 3)
        passes(other, name, 2)
        one.shared.settle()
        other.shared.settle()
        one.shared.settle()
    assert known(server) == 100
    # What the other one did last is learned with the next request that there is to tell of.
    assert passes(one, name, 1) == 1
    one.shared.settle()
    assert passes(one, name, 2000) == LIMIT - 101


def test_many_subjects_are_settled_in_one_go(server: RedisServer) -> None:
    Redis.from_url(server.url).flushall()
    one = gateway(server)
    for number in range(2000):
        passes(one, f"user-{number}", 1)
    began = time.monotonic()
    one.shared.settle()
    assert time.monotonic() - began < 2 * time_scale()
    assert known(server) == 2000
    assert not one.shared.away


def test_emptied_redis_gets_back_what_each_had_counted(server: RedisServer) -> None:
    name = subject()
    one, other = gateway(server), gateway(server)
    for _ in range(3):
        passes(one, name, 100)
        passes(other, name, 50)
        one.shared.settle()
        other.shared.settle()
    Redis.from_url(server.url).flushall()
    for _ in range(3):
        passes(one, name, 1)
        passes(other, name, 1)
        one.shared.settle()
        other.shared.settle()
    assert known(server) == 456
    assert passes(gateway(server), subject(), 5) == 5


@pytest.mark.parametrize("fault", FAULTS)
def test_redis_that_does_not_serve_costs_nothing_and_limits_go_on_locally(
    server: RedisServer, fault: Fault
) -> None:
    name = subject()
    one = gateway(server)
    one.shared.start()
    try:
        assert passes(one, name, 100) == 100
        eventually(lambda: known_of(server, one, name) == 100, 2)
        with fault(server) as is_there:
            assert is_there()
            asked, slowest, passed = incoming(who=person(name)), 0.0, 0
            until = time.monotonic() + 0.6
            while time.monotonic() < until:
                began = time.perf_counter()
                with contextlib.suppress(LimitExceeded):
                    one.check(asked)
                    passed += 1
                slowest = max(slowest, time.perf_counter() - began)
                time.sleep(0.0005)
            assert one.shared.away, "the fault was not noticed"
            assert slowest < 0.05 * time_scale()
            passed += passes(one, name, 2 * LIMIT)
            # Open for subjects that have something left, closed for the others.
            assert passed == LIMIT - 100
        eventually(lambda: not one.shared.away, 5)
        eventually(lambda: known_of(server, one, name) == LIMIT, 3)
        assert passes(one, name, 5) == 0
    finally:
        one.shared.stop()


def known_of(server: RedisServer, one: Limits, name: str) -> int:
    """What Redis holds of one subject."""
    (count,) = one.counts(person(name))
    return sum(int(each) for each in Redis.from_url(server.url).hvals(count.key))  # type: ignore[union-attr]


def test_gateways_user_of_redis_may_do_what_settling_needs(server: RedisServer) -> None:
    direct = Redis.from_url(server.url)
    direct.execute_command("ACL", "SETUSER", "gw", "on", ">secret", *rules("gateway-business").split())
    made = connect(server.url, "secret", username="gw", timeout_s=0.1, connections=2)
    one, name = Limits(LimitSettings(policies("rate", "10/hour")), RedisLink(made)), subject()
    passes(one, name, 4)
    one.shared.settle()
    assert not one.shared.away
    assert known_of(server, one, name) == 4
