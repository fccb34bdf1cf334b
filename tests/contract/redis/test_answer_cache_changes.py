"""Whose the stored answers are, what ends them, and that what Redis holds is not believed."""

from __future__ import annotations

import contextlib
import os
import time

import pytest
from redis import Redis

from discovery.errors import NotSent, ResponseLost, ResponseTimeout
from gateway.cache import PartPolicy
from gateway.cache.trust import REMOVED_S
from gateway.model import Answer
from services.kit.auth.verifier import Identity
from services.kit.stale import stored_form
from services.kit.stale.writer import Keep, StaleQueue, note_changes
from tests.support.cache_rig import (
    ADMIN,
    CLOCK,
    PATH,
    PUBLIC,
    Instance,
    Origin,
    at_once,
    incoming,
    keys,
    later,
)
from tests.support.eventually import eventually, time_scale

Pair = tuple[Instance, Instance]


# -- whose answers


def test_variants_are_kept_apart_by_the_headers_that_vary_names(pair: Pair, origin: Origin) -> None:
    one, other = pair
    origin.headers["Vary"] = "Accept-Language"
    origin.body = b"deutsch"
    one.get(accept_language="de")
    origin.body = b"english"
    one.get(accept_language="en")
    assert other.get(accept_language="de").body == b"deutsch"
    assert other.get(accept_language="en").body == b"english"
    origin.body = b"any"
    assert other.get().body == b"any"
    assert len(origin.calls) == 3


# -- what holds no more


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_write_through_one_instance_ends_all_that_is_stored_of_its_path(
    pair: Pair, origin: Origin, method: str
) -> None:
    one, other = pair
    paths = [(PATH, ""), (PATH, "q=1"), ("/api/pears", ""), ("/api/pears/1/comments", "")]
    for path, query in paths:
        one.get(path, query)
        assert other.state(path, query) == "HIT"
    origin.status = 204
    one.get(method=method)
    origin.status, origin.body, origin.headers["ETag"] = 200, b"two", '"2"'
    assert one.get().body == b"two"
    eventually(lambda: other.get().body == other.get(query="q=1").body == b"two", 1)
    assert other.get("/api/pears").body == b"one"
    assert other.get("/api/pears/1/comments").body == (b"two" if method == "DELETE" else b"one")


def test_write_ends_what_is_stored_of_the_place_that_it_names(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    origin.status, origin.headers = 404, {"Cache-Control": "public, max-age=60"}
    assert one.get("/api/pears/new").status == 404
    assert one.state("/api/pears/new") == "HIT"
    origin.status, origin.headers = 201, {"Location": "/api/pears/new?x=1"}
    one.get("/api/pears", method="POST")
    origin.status, origin.headers = 200, dict(PUBLIC)
    assert one.get("/api/pears/new").status == 200


@pytest.mark.parametrize(
    ("status", "error", "ends"),
    [
        (409, None, False),
        (500, None, True),
        (200, ResponseLost("pears"), True),
        (200, NotSent("pears"), False),
    ],
)
def test_write_that_may_have_run_ends_what_is_stored(
    pair: Pair, origin: Origin, status: int, error: Exception | None, ends: bool
) -> None:
    one, other = pair
    one.get()
    other.get()
    origin.status, origin.error = status, error
    with contextlib.suppress(ResponseLost, NotSent):
        one.get(method="POST")
    origin.status, origin.error = 200, None
    assert (one.state() == "MISS") == ends


def test_read_that_began_before_a_write_is_never_stored_after_it(pair: Pair, origin: Origin) -> None:
    one, other = pair
    origin.takes_s = 0.3

    def work(number: int) -> Answer:
        if number == 0:
            return one.get()
        time.sleep(0.1)
        origin.takes_s = 0
        answer = other.get(method="POST")
        origin.body, origin.headers["ETag"] = b"two", '"2"'
        return answer

    read, _ = at_once(2, work)
    assert read.body == b"one"  # it was asked before
    assert one.get().body == other.get().body == b"two"


def test_event_of_any_program_ends_what_is_stored_everywhere(
    pair: Pair, redis: Redis, origin: Origin
) -> None:
    one, other = pair
    one.get()
    other.get()
    origin.body, origin.headers["ETag"] = b"two", '"2"'
    for nonsense in (b"\xff", b"{}", b'{"path": 7}', b'{"path": "x"}', b"[" * 10_000):
        redis.publish("stale:pears:changed", nonsense)
    redis.publish("stale:plums:changed", b'{"path": "/api", "prefix": true}')
    redis.publish("stale:pears:other", b'{"path": "/api", "prefix": true}')
    time.sleep(0.1)
    assert one.get().body == other.get().body == b"one"
    redis.publish("stale:pears:changed", b'{"path": "/api/pears", "prefix": true}')
    eventually(lambda: one.get().body == b"two" and other.get().body == b"two", 1)


# -- what Redis holds is not believed


def poison(redis: Redis, pattern: str, data: bytes) -> None:
    found = keys(redis, pattern)
    assert found
    for key in found:
        redis.set(key, data)


@pytest.mark.parametrize("how", ["random", "short", "flipped", "empty", "list", "moved"])
def test_garbage_in_redis_is_never_served_and_breaks_nothing(
    pair: Pair, redis: Redis, origin: Origin, how: str
) -> None:
    one, other = pair
    one.get()
    one.get("/api/pears/2")
    key, second = keys(redis, "gateway:business:c:a:*")
    good = redis.get(key)
    assert isinstance(good, bytes)
    bad = {
        "random": os.urandom(500),
        "short": good[:-1],
        "flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "empty": b"",
        "moved": redis.get(second),
    }
    for each in (key, second):
        redis.delete(each)
        if how == "list":
            redis.rpush(each, "a")
        else:
            redis.set(each, bad[how])  # type: ignore[arg-type]
    if how == "moved":
        redis.set(second, good)
    other.forget_here()
    for path in (PATH, "/api/pears/2"):
        answer = other.get(path)
        assert (answer.status, answer.body, answer.header("x-cache")) == (200, b"one", "MISS")
        other.forget_here()
        assert other.state(path) == "HIT"  # and it has been mended


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a,b,+own", b"+own", b"x" * 5000])
def test_garbage_where_the_spec_is_leads_to_no_wrong_answer(
    pair: Pair, redis: Redis, origin: Origin, data: bytes
) -> None:
    one, other = pair
    one.get()
    poison(redis, "gateway:business:c:s:*", data)
    other.forget_here()
    for _ in range(2):
        answer = other.get()
        assert (answer.status, answer.body) == (200, b"one")
    redis.delete(*keys(redis, "gateway:business:c:s:*"))


def test_versions_that_are_lost_or_no_hash_end_what_was_stored(
    pair: Pair, redis: Redis, origin: Origin
) -> None:
    one, other = pair
    key = stored_form.versions_key("pears")
    one.get()
    origin.body = b"two"
    redis.set(key, "garbage")
    other.forget_here()
    assert other.get().body == b"two"
    other.forget_here()
    assert other.state() == "HIT"
    redis.delete(key)
    other.forget_here()
    assert other.state() == "MISS"
    one.get(method="POST")


# -- last good answers


def last_good(who: Identity, pair: Pair, path: str = PATH) -> bytes | None:
    found = {
        answer.body if answer else None
        for answer in (each.cache.last_good(incoming(path, who=who)) for each in pair)
    }
    assert len(found) == 1
    return found.pop()  # type: ignore[return-value]


def keep(redis: Redis, who: Identity, path: str, after_s: float = 0.0) -> None:
    """As the kit does for a view of scope subject, by the clock of the instance that publishes the changes."""
    name = stored_form.stale_name("pears", path, "", who.subject)
    assert name is not None
    at, scopes = time.time() + after_s, sorted(who.scopes)
    head = {"status": 200, "headers": [], "at": at, "stale_s": 86_400, "scopes": scopes}
    queue = StaleQueue(redis)
    queue.put(Keep(name, head, path.encode(), 3600))
    eventually(queue.idle, 5, 0.001)


@pytest.mark.parametrize("how", ["deleted here", "deleted there", "purged", "above"])
def test_removal_ends_the_last_good_answers_of_all_who_have_seen_it(
    pair: Pair, redis: Redis, origin: Origin, how: str
) -> None:
    one, _ = pair
    below, beside = f"{PATH}/seeds", "/api/pears/2"
    for path in (PATH, below, beside):
        keep(redis, ADMIN, path)
        assert last_good(ADMIN, pair, path) == path.encode()
    one.get(method="PUT")
    assert last_good(ADMIN, pair) == PATH.encode()
    if how == "deleted here":
        one.get(method="DELETE")
    elif how == "purged":
        one.cache.purge("pears", PATH, prefix=True)
    else:
        note_changes(
            redis, "pears", [stored_form.Change(PATH if how == "deleted there" else "/api", prefix=True)]
        )
    assert (last_good(ADMIN, pair), last_good(ADMIN, pair, below)) == (None, None)
    assert last_good(ADMIN, pair, beside) == (None if how == "above" else beside.encode())
    # What was read before, and is kept now.
    keep(redis, ADMIN, PATH)
    assert last_good(ADMIN, pair) is None
    later(REMOVED_S + 1)
    keep(redis, ADMIN, PATH, REMOVED_S + 1)
    assert last_good(ADMIN, pair) == PATH.encode()


@pytest.mark.parametrize("word", [b"", b"a1b2c3d4e5f6", b"x" * 11 + b"-", b"9" * 70_000])
def test_word_that_tells_no_time_removes_nothing(pair: Pair, redis: Redis, word: bytes) -> None:
    keep(redis, ADMIN, PATH)
    redis.hset(stored_form.versions_key("pears"), stored_form.bucket(PATH, prefix=True), word)
    assert last_good(ADMIN, pair) == PATH.encode()


# -- parts of composed answers


def test_part_is_kept_as_declared_and_ended_by_a_write(pair: Pair, origin: Origin) -> None:
    one, other = pair
    calls: list[int] = []

    def load() -> Answer:
        calls.append(1)
        return Answer(200, [("Cache-Control", "no-cache")], f"{len(calls)}".encode(), source="pears-1")

    policy = PartPolicy(ttl_s=1, stale_while_revalidate_s=5)
    first = one.cache.part("pears", f"{PATH}?a=1", policy, load)
    assert (first.header("x-cache"), first.body) == ("MISS", b"1")
    hit = other.cache.part("pears", f"{PATH}?a=1", policy, load)
    assert (hit.header("x-cache"), hit.body, hit.header("age")) == ("HIT", b"1", "0")
    later(2.1)
    stale = other.cache.part("pears", f"{PATH}?a=1", policy, load)
    assert (stale.header("x-cache"), stale.body, stale.header("x-stale-age")) == ("STALE", b"1", "1")
    eventually(lambda: other.cache.part("pears", f"{PATH}?a=1", policy, load).body == b"2", 3)
    one.get(method="PUT")
    assert one.cache.part("pears", f"{PATH}?a=1", policy, load).body == b"3"


def test_part_that_one_with_little_time_asks_for_keeps_nobody_waiting(pair: Pair) -> None:
    """And a new one, asked for beside a stale answer, has the time that a part has."""
    one, _ = pair
    hasty, policy = incoming(within_s=0.5), PartPolicy(ttl_s=1, stale_while_revalidate_s=60)
    hasty.timeout_s = 3.0

    def slow() -> Answer:
        quick = one.cache.part("pears", PATH, policy, lambda: Answer(200, [], b"quick"), asked=incoming())
        assert (quick.header("x-cache"), quick.body) == ("MISS", b"quick")
        raise ResponseTimeout("pears")

    began = time.perf_counter()
    with pytest.raises(ResponseTimeout):
        one.cache.part("pears", PATH, policy, slow, asked=hasty)
    assert time.perf_counter() - began < 2 * time_scale()
    later(2)
    left: list[float] = []

    def anew() -> Answer:
        left.append(hasty.deadline - CLOCK.monotonic())
        return Answer(200, [], b"new")

    assert one.cache.part("pears", PATH, policy, anew, asked=hasty).header("x-cache") == "STALE"
    assert eventually(lambda: left, 5)[0] > 1
