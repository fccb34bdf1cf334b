"""Redis killed, hung, full, read-only: answers stay right, and cost milliseconds more. Each test shows that the fault was there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from redis import Redis

from gateway.cache.last_good import HELD_S
from gateway.cache.link import Link
from gateway.cache.memory import Memory
from gateway.cache.store import Leases
from gateway.cache.trust import TRUST_S
from gateway.model import Answer
from services.kit.auth.verifier import Identity
from services.kit.redis_client import Circuit
from services.kit.stale import stored_form
from services.kit.stale.writer import Keep, StaleQueue
from tests.support import servers
from tests.support.cache_rig import ANN, BOB, CLOCK, PATH, Instance, Origin, incoming, keys, later
from tests.support.eventually import eventually, time_scale
from tests.support.redis_faults import FAULTS, Fault, hung

CLIENTS = 8
PATHS = 40


@dataclass
class World:
    """Two instances, their Redis, and a service whose only answer is a number that grows with every write."""

    server: servers.RedisServer
    redis: Redis
    origin: Origin
    one: Instance
    other: Instance
    number: int = 0
    wrong: list[str] = field(default_factory=list)

    def write(self, through: Instance) -> int:
        """The number from now on."""
        self.number += 1
        self.origin.body = str(self.number).encode()
        self.origin.headers["ETag"] = f'"{self.number}"'
        for place in range(PATHS):
            through.get(f"{PATH}/{place}", method="PUT")
        return self.number

    def read(self, instance: Instance, place: int) -> int:
        answer = instance.get(f"{PATH}/{place}")
        assert answer.status == 200
        return int(answer.body)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[servers.RedisServer, Instance, Instance]]:
    with servers.redis(args=["--maxmemory-policy", "noeviction"]) as server:
        one, other = (Instance(server.url, Origin(), timeout_s=0.1) for _ in range(2))
        yield server, one, other
        one.stop()
        other.stop()


@pytest.fixture
def world(pair: tuple[servers.RedisServer, Instance, Instance]) -> Iterator[World]:
    origin = Origin(headers={"Cache-Control": "public, max-age=60", "ETag": '"0"'}, body=b"0", takes_s=0.002)
    server, *instances = pair
    with Redis.from_url(server.url) as redis:
        redis.flushall()
        for each in instances:
            each.begin(origin)
        yield World(server, redis, origin, *instances)


def p99_s(world: World, for_s: float, floor: Callable[[], int]) -> float:
    """The 99th percentile of reads through both instances; `floor` is what an answer must be at least."""
    times: list[float] = []
    until = time.perf_counter() + for_s

    def client(number: int) -> None:
        instance = (world.one, world.other)[number % 2]
        turn = number
        while time.perf_counter() < until:
            least = floor()
            began = time.perf_counter()
            found = world.read(instance, turn % PATHS)
            times.append(time.perf_counter() - began)
            if found < least:
                world.wrong.append(f"{found} < {least}")
            turn += 7
            time.sleep(0.002)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(times) >= CLIENTS
    return sorted(times)[int(len(times) * 0.99)]


@pytest.mark.parametrize("fault", FAULTS)
def test_answers_stay_right_and_quick_while_redis_is_not(world: World, fault: Fault) -> None:
    first = world.write(world.one)
    before = p99_s(world, 0.5, lambda: first)
    with fault(world.server) as is_there:
        assert is_there()
        during = p99_s(world, 0.7, lambda: first)
        # A change is seen at once where it was made, and by the others when their trust has run out.
        second = world.write(world.one)
        assert world.read(world.one, 3) == second
        time.sleep(TRUST_S + 0.1)
        assert [world.read(world.other, place) for place in range(PATHS)] == [second] * PATHS
        assert is_there()
    assert during <= (2 * before + 0.05) * time_scale(), (
        f"{before * 1000:.1f} ms, then {during * 1000:.1f} ms"
    )
    assert world.wrong == []
    # And all is well again: what Redis had from before is not believed, and it is used.
    eventually(lambda: world.one.cache.connected and world.other.cache.connected, 10)
    for instance in (world.one, world.other):
        instance.forget_here()
        assert {world.read(instance, place) for place in range(PATHS)} == {second}
    third = world.write(world.other)
    eventually(lambda: world.read(world.one, 5) == third, 1)
    world.other.forget_here()
    eventually(lambda: world.other.state(f"{PATH}/5") == "HIT" and world.one.state(f"{PATH}/5") == "HIT", 3)


def test_hung_redis_costs_a_request_one_wait_and_the_next_ones_nothing(world: World) -> None:
    world.read(world.one, 0)
    with hung(world.server) as is_there:
        assert is_there()
        times = []
        for place in range(1, 60):
            began = time.perf_counter()
            world.read(world.one, place)
            times.append(time.perf_counter() - began)
        assert is_there()
    waits = [each for each in times if each > 0.05 * time_scale()]
    assert len(waits) <= 2
    assert max(times) < 0.4 * time_scale()


def test_late_answer_leaves_nobody_waiting_for_a_load_that_is_none(world: World) -> None:
    """A process that has given Redis up may get its lease all the same: Redis carries the command out once it goes on."""
    lone = Instance(world.server.url, world.origin, timeout_s=0.1, follow=False)
    lone.state(f"{PATH}/9")  # its connection is there
    with hung(world.server) as is_there:
        assert is_there()
        assert lone.state() == "MISS"
    eventually(lambda: keys(world.redis, "gateway:business:c:l:*"), 5, 0.005)
    began = time.perf_counter()
    assert world.one.state() == "MISS"
    assert 0.1 < time.perf_counter() - began < 1.5 * time_scale(), "it was not left to end"


def test_heartbeat_that_is_late_costs_no_more_than_others(world: World) -> None:
    """What is done at each beat is done four times a second, also while an answer is waited for."""
    tended: list[float] = []

    class Counted(Leases):
        def keep_up(self, redis: Redis) -> None:
            tended.append(time.monotonic())

    circuit, leases = Circuit(world.redis, "test"), Counted(time.monotonic)
    link = Link(world.redis, circuit, Memory(), leases, CLOCK, probe_key="probe")
    leases.take("a", "b")
    link.start()
    try:
        eventually(lambda: link.heard, 5)
        tended.clear()
        with hung(world.server) as is_there:
            assert is_there()
            time.sleep(0.7)
        time.sleep(0.3)
    finally:
        link.stop()
    assert 1 <= len(tended) <= 8


def test_last_good_answers_cost_no_time_when_redis_is_hung(world: World) -> None:
    name = stored_form.stale_name("pears", PATH, "", None)
    assert name is not None
    queue = StaleQueue(world.redis)
    queue.put(
        Keep(name, {"status": 200, "headers": [], "at": CLOCK.time(), "stale_s": 60, "scopes": []}, b"x", 60)
    )
    eventually(queue.idle, 5)
    good = world.one.cache.last_good(incoming())
    assert isinstance(good, Answer)
    assert (good.body, good.header("x-cache"), good.header("x-stale-age")) == (b"x", "STALE", "0")
    with hung(world.server) as is_there:
        assert is_there()
        world.one.cache.last_good(incoming())
        began = time.perf_counter()
        assert [world.one.cache.last_good(incoming(f"{PATH}/{each}")) for each in range(20)] == [None] * 20
        assert time.perf_counter() - began < 0.1 * time_scale()
    eventually(lambda: world.one.cache.last_good(incoming()) is not None, 10)


def test_last_good_answer_outlives_a_short_absence_of_redis(world: World) -> None:
    """One late answer of Redis must not turn what is given fifty times a second into errors for a second."""
    queue = StaleQueue(world.redis)
    head = {"status": 200, "headers": [], "stale_s": 60}
    for subject, body, age_s in ((None, b"for all", 1), (ANN.subject, b"hers", 0)):
        name = stored_form.stale_name("pears", PATH, "", subject)
        assert name is not None
        queue.put(
            Keep(name, {**head, "at": CLOCK.time() - age_s, "scopes": ["user"] if subject else []}, body, 60)
        )
    eventually(queue.idle, 5)

    def given(who: Identity) -> bytes | None:
        answer = world.one.cache.last_good(incoming(who=who))
        return bytes(answer.body) if answer is not None else None  # type: ignore[arg-type]

    assert given(ANN) == b"hers"
    with hung(world.server) as is_there:
        assert is_there()
        assert (given(ANN), given(BOB)) == (b"hers", b"for all")
        assert world.one.cache.purge("pears", PATH) is False
        assert given(BOB) is None
        later(HELD_S)
        assert given(ANN) is None


def test_lost_subscription_ends_trust_in_what_is_held_here(world: World) -> None:
    """A change that was not heard of here is not overlooked for longer than a second."""
    first = world.write(world.one)
    assert world.read(world.other, 1) == first
    for client in world.redis.client_list(_type="pubsub"):
        world.redis.client_kill_filter(_id=client["id"])
    second = world.write(world.one)
    eventually(lambda: world.read(world.other, 1) == second, TRUST_S + 0.5)
    eventually(lambda: len(world.redis.client_list(_type="pubsub")) == 2, 5)
    eventually(lambda: world.one.cache.connected and world.other.cache.connected, 5)
    third = world.write(world.one)
    eventually(lambda: world.read(world.other, 1) == third, 1)


def test_without_redis_each_process_keeps_to_itself_for_a_second(world: World) -> None:
    instance = Instance(None, world.origin)
    assert [instance.state(), instance.state()] == ["MISS", "HIT"]
    calls = len(world.origin.calls)
    time.sleep(1.1)
    assert instance.get().body == b"0"
    assert len(world.origin.calls) == calls + 1
    assert instance.cache.last_good(incoming()) is None
    assert instance.cache.purge("pears", PATH) is False
    assert instance.state() == "MISS"
