"""The cache against a real Redis: stampedes, invalidation against stale writes, and a Redis that goes and comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

from services.kit.cache import Cache
from services.kit.redis_client import connect
from tests.support.eventually import eventually, time_scale
from tests.support.servers import RedisServer, free_port, redis

PASSWORD = "open-sesame"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis(password=PASSWORD) as running:
        yield running


def cache(port: int, namespace: str) -> Cache:
    """A cache as one process of its own would have it."""
    client = connect(f"redis://127.0.0.1:{port}/0", PASSWORD, timeout_s=0.1, connections=32)
    return Cache(client, namespace)


@pytest.fixture
def own(server: RedisServer, request: pytest.FixtureRequest) -> Cache:
    return cache(server.port, request.node.name)


class Source:
    """What is behind the cache: a value, how often it was loaded, and a way to hold a load up."""

    def __init__(self, value: Any = 1) -> None:
        self.value = value
        self.loads = 0
        self.reading = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def load(self) -> Any:
        self.loads += 1
        value = self.value
        self.reading.set()
        assert self.go_on.wait(10)
        return value


def in_threads(count: int, action: Any) -> list[Any]:
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(action())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return answers


def test_second_reader_gets_the_stored_value(own: Cache) -> None:
    source = Source({"a": [1, None, "é"]})
    assert own.get_or_load("k", 10, source.load) == {"a": [1, None, "é"]}
    assert own.get_or_load("k", 10, source.load) == {"a": [1, None, "é"]}
    assert own.get("k") == {"a": [1, None, "é"]}
    assert source.loads == 1


def test_value_is_gone_after_its_time(own: Cache) -> None:
    own.set("k", "v", 0.1)
    assert own.get("k") == "v"
    eventually(lambda: own.get("k") is None, 2)


def test_invalidation_is_seen_by_other_processes(own: Cache, server: RedisServer, request: Any) -> None:
    other = cache(server.port, request.node.name)
    source = Source()
    own.get_or_load("k", 10, source.load)
    source.value = 2
    other.invalidate("k")
    assert own.get_or_load("k", 10, source.load) == 2


@pytest.mark.parametrize("by", ["itself", "another process"])
def test_value_read_before_a_change_is_not_stored_after_it(
    own: Cache, server: RedisServer, request: Any, by: str
) -> None:
    source = Source("old")
    source.go_on.clear()
    slow = threading.Thread(target=own.get_or_load, args=("k", 10, source.load))
    slow.start()
    assert source.reading.wait(5)
    source.value = "new"
    changer = own if by == "itself" else cache(server.port, request.node.name)
    changer.invalidate("k")
    source.go_on.set()
    slow.join(10)
    assert own.get("k") is None
    assert own.get_or_load("k", 10, source.load) == "new"


def test_reader_after_a_change_does_not_join_a_load_from_before_it(own: Cache) -> None:
    source = Source("old")
    source.go_on.clear()
    slow = threading.Thread(target=own.get_or_load, args=("k", 10, source.load))
    slow.start()
    assert source.reading.wait(5)
    source.value = "new"
    own.invalidate("k")
    fresh = Source("new")
    assert own.get_or_load("k", 10, fresh.load) == "new"
    source.go_on.set()
    slow.join(10)
    assert own.get("k") == "new"


def test_threads_that_ask_at_once_load_once(own: Cache) -> None:
    source = Source()

    def load() -> Any:
        time.sleep(0.03)
        return source.load()

    assert in_threads(20, lambda: own.get_or_load("k", 10, load)) == [1] * 20
    assert source.loads == 1


def test_processes_that_ask_at_once_load_once(own: Cache, server: RedisServer, request: Any) -> None:
    caches = iter([cache(server.port, request.node.name) for _ in range(8)])
    lock = threading.Lock()
    source = Source()

    def load() -> Any:
        time.sleep(0.03)
        return source.load()

    def ask() -> Any:
        with lock:
            mine = next(caches)
        return mine.get_or_load("k", 10, load)

    assert in_threads(8, ask) == [1] * 8
    assert source.loads == 1


def test_load_that_takes_long_is_not_waited_for(own: Cache, server: RedisServer, request: Any) -> None:
    """Whether it goes on in this process or in another: what it holds up must not hold up all who ask for the same."""
    slow = Source()
    slow.go_on.clear()
    other, there = cache(server.port, request.node.name), Source()
    there.go_on.clear()
    with ThreadPoolExecutor(2) as pool:
        try:
            held = [pool.submit(own.get_or_load, "k", 10, slow.load)]
            assert slow.reading.wait(5)
            held.append(pool.submit(other.get_or_load, "k", 10, there.load))
            assert there.reading.wait(5), "nobody waits for ever"
            for each in (own, other):
                started = time.monotonic()
                assert each.get_or_load("k", 10, Source(2).load) == 2
                assert time.monotonic() - started < 0.2 * time_scale()
        finally:
            slow.go_on.set()
            there.go_on.set()
    assert [each.result() for each in held] == [1, 1]


def test_loaders_error_passes_through_and_keeps_nobody_waiting(own: Cache) -> None:
    def fail() -> Any:
        raise KeyError("no such row")

    with pytest.raises(KeyError):
        own.get_or_load("k", 10, fail)
    started = time.monotonic()
    assert own.get_or_load("k", 10, Source().load) == 1
    assert time.monotonic() - started < 0.2 * time_scale()


def test_nothing_is_stored_for_none(own: Cache) -> None:
    source = Source(None)
    assert own.get_or_load("k", 10, source.load) is None
    source.value = 5
    assert own.get_or_load("k", 10, source.load) == 5


def test_namespaces_do_not_see_each_other(server: RedisServer) -> None:
    cache(server.port, "one").set("k", 1, 10)
    assert cache(server.port, "two").get("k") is None


@pytest.mark.parametrize("how", ["refuses", "hangs"])
def test_redis_that_is_gone_costs_milliseconds_and_no_error(how: str) -> None:
    with redis(password=PASSWORD) as server:
        own = cache(server.port, "gone")
        own.get_or_load("k", 10, Source().load)
        if how == "refuses":
            server.kill()
        else:
            server.process.signal(19)
        source = Source(2)
        started = time.monotonic()
        for number in range(50):
            assert own.get_or_load(f"k{number}", 10, source.load) == 2
            own.invalidate("k")
            own.set("x", 1, 1)
            assert own.get("x") is None
        # One try of 0.1 s, and then the breaker: none of the trials is at a caller's cost.
        assert time.monotonic() - started < 0.3 * time_scale()
        slowest_s, until = 0.0, time.monotonic() + 1
        while time.monotonic() < until:
            began = time.monotonic()
            own.get_or_load("k", 10, source.load)
            slowest_s = max(slowest_s, time.monotonic() - began)
            time.sleep(0.001)
        assert slowest_s < 0.05 * time_scale()


def test_invalidation_that_redis_missed_is_made_up_for_when_it_is_back() -> None:
    with redis(password=PASSWORD) as server:
        own, other = cache(server.port, "missed"), cache(server.port, "missed")
        own.get_or_load("k", 60, Source("old").load)
        assert other.get("k") == "old"
        server.process.signal(19)
        for _ in range(4):
            own.get("something")
        # The breaker is open: this never leaves the process.
        own.invalidate("k")
        server.process.signal(18)

        def made_up_for() -> bool:
            own.get("something")
            return other.get("k") is None

        eventually(made_up_for, 5)
        assert own.get_or_load("k", 60, Source("new").load) == "new"
        eventually(lambda: own.get_or_load("k", 60, Source("new").load) and other.get("k") == "new", 5)


def test_who_knows_that_redis_was_away_believes_it_when_all_have_told_what_it_missed() -> None:
    with redis(password=PASSWORD) as server:
        own, other = cache(server.port, "told"), cache(server.port, "told")
        own.get_or_load("k", 60, Source("old").load)
        server.process.signal(19)
        own.get("something")
        other.get("something")
        own.invalidate("k")
        server.process.signal(18)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert other.get_or_load("k", 60, Source("new").load) == "new"
            time.sleep(0.005)
        assert other.get("k") == "new", "it never trusted it again"


@pytest.mark.parametrize(
    ("words", "undo"),
    [
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    ],
)
def test_redis_that_cannot_be_written_is_not_read_either_until_it_can(words: str, undo: str) -> None:
    """What cannot be invalidated must not be believed."""
    with redis(password=PASSWORD) as server, Redis.from_url(server.url) as operator:
        own, other = cache(server.port, "unwritten"), cache(server.port, "unwritten")
        own.get_or_load("k", 60, Source("old").load)
        operator.execute_command(*words.split())
        for turn in range(5):
            assert own.get_or_load(f"new-{turn}", 60, Source(turn).load) == turn
        own.invalidate("k")
        assert own.get_or_load("k", 60, Source("new").load) == "new"
        assert other.get_or_load("k", 60, Source("new").load) == "new"
        operator.execute_command(*undo.split())
        eventually(lambda: other.get("k") != "old", 5)
        eventually(lambda: own.get_or_load("k", 60, Source("new").load) and own.get("k") == "new", 5)


def test_breaker_closes_once_redis_is_back() -> None:
    with redis(password=PASSWORD) as server:
        own = cache(server.port, "back")
        server.kill()
        for _ in range(5):
            own.get("k")
        server.start()
        own_source = Source(3)

        def cached() -> bool:
            own.get_or_load("k", 60, own_source.load)
            return own.get("k") == 3

        eventually(cached, 5)


def test_without_a_url_it_only_loads() -> None:
    assert connect(None, None, timeout_s=0.1, connections=1) is None
    off = Cache(None, "off")
    source = Source()
    assert [off.get_or_load("k", 10, source.load) for _ in range(2)] == [1, 1]
    assert source.loads == 2
    off.invalidate("k")
    assert off.get("k") is None


def test_nothing_listening_is_no_error_at_the_start() -> None:
    own = cache(free_port(), "nothing")
    assert own.get_or_load("k", 10, Source(4).load) == 4
