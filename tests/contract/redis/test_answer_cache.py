"""Two instances of the gateway's cache on one real Redis: what they share, wait for, forget, and never take for good."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from discovery.errors import NoInstance, NotSent, ResponseLost
from gateway.cache import PartPolicy
from gateway.errors import Refused
from gateway.model import Answer
from services.kit import answers
from services.kit.auth import Identity
from tests.contract.redis.rig import (
    ADMIN,
    ANN,
    BOB,
    PATH,
    PUBLIC,
    Instance,
    Origin,
    at_once,
    incoming,
    keys,
    later,
)
from tests.support import servers
from tests.support.eventually import eventually, time_scale


@pytest.fixture(scope="module")
def server() -> Iterator[servers.RedisServer]:
    with servers.redis() as started:
        yield started


@pytest.fixture
def redis(server: servers.RedisServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture(scope="module")
def instances(server: servers.RedisServer) -> Iterator[tuple[Instance, Instance]]:
    one, other = Instance(server.url, Origin()), Instance(server.url, Origin())
    yield one, other
    one.stop()
    other.stop()


@pytest.fixture
def pair(redis: Redis, instances: tuple[Instance, Instance], origin: Origin) -> tuple[Instance, Instance]:
    for each in instances:
        each.begin(origin)
    return instances


Pair = tuple[Instance, Instance]


def test_answer_is_shared_by_instances_and_says_where_it_came_from(pair: Pair, origin: Origin) -> None:
    one, other = pair
    first = one.get()
    assert (first.header("x-cache"), first.body, first.source) == ("MISS", b"one", "pears-1")
    for answer in (one.get(), other.get(), other.get()):
        assert (answer.status, answer.body, answer.source) == (200, b"one", "cache")
        assert (answer.header("x-cache"), answer.header("age")) == ("HIT", "0")
        assert answer.header("content-length") == "3"
        assert answer.header("etag") == '"1"'
        assert answer.header("x-stale-age") is None
    assert len(origin.calls) == 1
    assert one.state(query="q=1") == "MISS"


def test_client_gets_304_and_the_service_is_asked_without_the_clients_conditions(
    pair: Pair, origin: Origin
) -> None:
    one, other = pair
    first = one.get(if_none_match='"1"', if_modified_since="Thu, 01 Jan 2026 00:00:00 GMT")
    assert (first.status, first.body, first.header("x-cache")) == (304, b"", "MISS")
    assert origin.calls[0]["if-none-match"] == origin.calls[0]["if-modified-since"] == ""
    assert [each.get(if_none_match='"1"').status for each in (one, other)] == [304, 304]
    assert other.get(if_none_match='"2"').body == b"one"
    assert len(origin.calls) == 1


def test_head_is_answered_from_what_a_get_stored_and_stores_nothing(pair: Pair, origin: Origin) -> None:
    one, other = pair
    assert one.state(method="HEAD") == "BYPASS"
    one.get()
    for each in pair:
        answer = each.get(method="HEAD")
        assert (answer.status, answer.body, answer.header("content-length")) == (200, b"", "3")
        assert answer.header("x-cache") == "HIT"
    assert len(origin.calls) == 2


def test_end_of_freshness_is_a_question_whether_it_still_holds(pair: Pair, origin: Origin) -> None:
    one, other = pair
    origin.headers["Cache-Control"] = "public, max-age=1, stale-if-error=60"
    one.get()
    later(1.05)
    answer = other.get()
    assert origin.calls[-1]["if-none-match"] == '"1"'
    assert (answer.status, answer.body, answer.header("x-cache"), answer.header("age")) == (
        200,
        b"one",
        "HIT",
        "0",
    )
    assert one.state() == "HIT"
    assert len(origin.calls) == 2
    later(1.05)
    origin.body, origin.headers["ETag"] = b"two", '"2"'
    assert one.get().body == b"two"
    eventually(lambda: other.get().body == b"two", 3)


def test_stale_answer_is_given_while_one_asks_in_the_background(pair: Pair, origin: Origin) -> None:
    one, other = pair
    origin.headers["Cache-Control"] = "public, max-age=1, stale-while-revalidate=30"
    one.get()
    later(2.1)
    origin.body, origin.headers["ETag"], origin.takes_s = b"two", '"2"', 0.3
    began = time.perf_counter()
    given = [each.get() for each in (one, other, one, other)]
    assert time.perf_counter() - began < 0.3 * time_scale()
    assert {(answer.body, answer.header("x-cache")) for answer in given} == {(b"one", "STALE")}
    assert {answer.header("x-stale-age") for answer in given} == {"1"}
    assert given[0].header("age") == "2"
    eventually(lambda: one.get().body == b"two" and other.get().body == b"two", 5)
    assert len(origin.calls) == 2


@pytest.mark.parametrize("failure", ["raises", "500", "503"])
def test_stale_answer_stands_in_for_a_failure_within_its_limit(
    pair: Pair, origin: Origin, failure: str
) -> None:
    one, other = pair
    origin.headers["Cache-Control"] = "public, max-age=1, stale-if-error=2"
    one.get()
    later(1.1)
    if failure == "raises":
        origin.error = ResponseLost("pears")
    else:
        origin.status, origin.body, origin.headers = int(failure), b"broken", {}
    for each in pair:
        answer = each.get()
        assert (answer.status, answer.body, answer.header("x-cache")) == (200, b"one", "STALE")
    calls = len(origin.calls)
    assert one.state() == "STALE"
    assert len(origin.calls) == calls  # asked a moment ago
    later(2.1)
    if failure == "raises":
        with pytest.raises(ResponseLost):
            one.get()
    else:
        assert one.get().status == int(failure)


def test_failure_that_comes_back_well_ends_the_stale_answers(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    origin.headers["Cache-Control"] = "public, max-age=1, stale-if-error=60"
    one.get()
    later(1.1)
    origin.error = NoInstance("pears")
    assert one.state() == "STALE"
    origin.error, origin.body, origin.headers["ETag"] = None, b"two", '"2"'
    eventually(lambda: one.get().body == b"two", 3)


@pytest.mark.parametrize("control", ["public, max-age=1, must-revalidate", "public, s-maxage=1"])
def test_answer_that_forbids_it_never_stands_in(pair: Pair, origin: Origin, control: str) -> None:
    one, _ = pair
    origin.headers["Cache-Control"] = control
    one.get()
    later(1.1)
    origin.error = ResponseLost("pears")
    with pytest.raises(ResponseLost):
        one.get()


def test_lifetimes_of_what_was_stored_together_do_not_end_together(pair: Pair) -> None:
    one, _ = pair
    for number in range(20):
        one.get(f"/api/pears/{number}")
    lives = {held.entry.lifetime.fresh_s for held in one.cache._memory._held.values()}
    assert len(lives) == 20
    assert min(lives) >= 54
    assert max(lives) <= 60


# -- one for all


def test_many_clients_of_two_instances_on_an_expired_hot_key_cost_one_call(
    pair: Pair, origin: Origin
) -> None:
    origin.headers["Cache-Control"] = "public, max-age=1"
    pair[0].get()
    pair[1].get()
    later(1.1)
    origin.takes_s, origin.body, origin.headers["ETag"] = 0.3, b"two", '"2"'
    given = at_once(100, lambda number: pair[number % 2].get())
    assert {answer.body for answer in given} == {b"two"}
    assert len(origin.calls) == 1 + 1


def test_many_who_want_what_nobody_has_seen_cost_one_call(pair: Pair, origin: Origin) -> None:
    origin.takes_s = 0.2
    given = at_once(60, lambda number: pair[number % 2].get(who=(ANN, BOB, None)[number % 3]))
    assert {answer.body for answer in given} == {b"one"}
    assert len(origin.calls) == 1


def test_nobody_waits_for_what_is_not_to_be_stored(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    origin.headers, origin.takes_s = {"Cache-Control": "no-store"}, 0.3
    began = time.perf_counter()
    given = at_once(20, lambda _: one.get())
    # The first finds out, the others then ask at once; the next ones know.
    assert time.perf_counter() - began < 0.9 * time_scale()
    assert {answer.header("x-cache") for answer in given} == {"BYPASS"}
    began = time.perf_counter()
    at_once(20, lambda _: one.get())
    assert time.perf_counter() - began < 0.55 * time_scale()
    assert len(origin.calls) == 40


def test_failure_of_the_one_who_asked_is_everybodys(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    origin.takes_s, origin.error = 0.2, NoInstance("pears", "gone")
    given = at_once(20, lambda _: one.get())
    assert {(type(error), str(error)) for error in given} == {(NoInstance, str(origin.error))}
    assert len(origin.calls) <= 2


def test_leader_whose_time_is_over_does_not_fail_the_others(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    one.get()
    one.cache.purge("pears", PATH)
    origin.calls.clear()
    failing = Refused(504, "over")

    def get(number: int) -> Answer:
        asked = incoming()

        def load(extra: object) -> Answer:
            time.sleep(0.05)
            if number == 0:
                raise failing
            return origin.load(asked)({})

        return one.cache.serve(asked, load)

    given = at_once(5, get)
    assert all(isinstance(each, Answer) for each in given[1:])


def test_lease_of_one_who_died_is_taken_over(pair: Pair, redis: Redis, origin: Origin) -> None:
    one, other = pair
    one.get()
    redis.delete(*keys(redis, "gateway:business:c:a:*"))
    for each in pair:
        each.forget_here()
    fetched: list[bytes] = keys(redis, "gateway:business:c:l:*")
    assert fetched == []  # given back after the load
    # Somebody holds it, and is never heard of again.
    asked = incoming()
    from gateway.cache.keys import GUESS, Names, Variant, base_of

    name = Names("business").lease(Variant(base_of(asked), (), (), "").text())
    assert GUESS.text() == "+all"
    redis.set(name, "dead", px=600)
    began = time.perf_counter()
    assert other.state() == "MISS"
    assert 0.4 < time.perf_counter() - began < 3 * time_scale()


# -- whose answers


def test_private_answers_are_apart_and_scopes_are_part_of_who_asks(pair: Pair, origin: Origin) -> None:
    one, other = pair
    origin.headers["Cache-Control"] = "private, max-age=60"
    origin.body = b"anns"
    assert one.state(who=ANN) == "MISS"
    assert other.get(who=ANN).body == b"anns"
    origin.body = b"bobs"
    for each in pair:
        assert each.get(who=BOB).body == b"bobs"
        assert each.get(who=ANN).body == b"anns"
    origin.body = b"fewer"
    assert one.get(who=Identity("ann", frozenset(), 9e9)).body == b"fewer"
    origin.body = b"nobodys"
    for headers in ({}, {"cookie": "session=ann"}, {"authorization": "Bearer forged"}, {"x_api_key": "k"}):
        assert one.get(**headers).body == b"nobodys"
        assert one.state(**headers) == "BYPASS"


def test_public_answer_to_a_token_is_for_all_and_one_without_a_word_is_not(
    pair: Pair, origin: Origin
) -> None:
    one, other = pair
    one.get(who=ANN)
    assert other.state() == other.state(who=BOB) == other.state(cookie="a") == "HIT"
    origin.headers["Cache-Control"] = "max-age=60"
    assert one.state("/api/pears/2", who=ANN) == "MISS"
    assert one.state("/api/pears/2", who=ANN) == "HIT"
    assert [other.state("/api/pears/2", who=BOB), other.state("/api/pears/2")] == ["MISS", "MISS"]


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


def test_host_that_one_client_names_poisons_nobody_elses_answer(pair: Pair, origin: Origin) -> None:
    one, other = pair
    origin.body = b"link to evil.test"
    one.get(x_forwarded_host="evil.test")
    origin.body = b"link to edge.test"
    assert other.get().body == b"link to edge.test"


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


def test_purge_asks_for_a_token_with_the_scope_admin(pair: Pair) -> None:
    one, other = pair
    for path in (PATH, "/api/pears/2", "/api/plums/1"):
        one.get(path)
        assert other.state(path) == "HIT"
    for who, status in ((None, 401), (ANN, 403)):
        with pytest.raises(Refused) as refused:
            one.get(method="PURGE", who=who)
        assert refused.value.status == status
    assert one.state() == "HIT"
    answer = one.get(method="PURGE", who=ADMIN)
    assert answer.status == 200
    assert json.loads(answer.body) == {"purged": PATH, "prefix": False, "everywhere": True}  # type: ignore[arg-type]
    assert one.state() == "MISS"
    assert one.state("/api/pears/2") == "HIT"
    one.get("/api/pears/*", method="PURGE", who=ADMIN)
    assert one.state("/api/pears/2") == one.state() == "MISS"
    eventually(lambda: other.state("/api/pears/2") == "HIT" and len(other.origin.calls) == 6, 1)
    assert one.state("/api/plums/1") == "HIT"


def test_event_of_any_program_ends_what_is_stored_everywhere(
    pair: Pair, redis: Redis, origin: Origin
) -> None:
    one, other = pair
    one.get()
    other.get()
    origin.body, origin.headers["ETag"] = b"two", '"2"'
    for nonsense in (b"\xff", b"{}", b'{"path": 7}', b'{"path": "x"}', b"[" * 10_000):
        redis.publish("snapshot:pears:changed", nonsense)
    redis.publish("snapshot:plums:changed", b'{"path": "/api", "prefix": true}')
    redis.publish("snapshot:pears:other", b'{"path": "/api", "prefix": true}')
    time.sleep(0.1)
    assert one.get().body == other.get().body == b"one"
    redis.publish("snapshot:pears:changed", b'{"path": "/api/pears", "prefix": true}')
    eventually(lambda: one.get().body == b"two" and other.get().body == b"two", 1)


def test_change_that_a_service_tells_ends_what_is_stored(pair: Pair, redis: Redis, origin: Origin) -> None:
    from services.kit.snapshot_queue import SnapshotQueue

    one, other = pair
    one.get()
    other.get()
    origin.body, origin.headers["ETag"] = b"two", '"2"'
    SnapshotQueue(redis).change("pears", answers.Change(PATH))
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


@pytest.mark.parametrize("key", [answers.versions_key("pears")])
def test_versions_that_are_lost_or_no_hash_end_what_was_stored(
    pair: Pair, redis: Redis, origin: Origin, key: str
) -> None:
    one, other = pair
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


# -- bounds and by-ways


def test_large_answers_are_passed_on_and_not_stored(pair: Pair, redis: Redis, origin: Origin) -> None:
    one, _ = pair
    origin.body = bytes(1024 * 1024 + 1)
    assert one.get().body == origin.body
    assert one.state() == "BYPASS"
    assert keys(redis, "gateway:business:c:a:*") == []
    origin.body = bytes(1024 * 1024)
    assert one.state("/api/pears/2") == "MISS"
    assert one.state("/api/pears/2") == "HIT"


@pytest.mark.parametrize(
    "headers",
    [
        {"range": "bytes=0-1"},
        {"accept": "text/event-stream"},
        {"cache_control": "no-store"},
        {"if_match": '"1"'},
    ],
)
def test_request_that_is_not_for_a_cache_goes_by(pair: Pair, headers: dict[str, str], origin: Origin) -> None:
    one, _ = pair
    one.get()
    assert one.state(**headers) == "BYPASS"
    assert len(origin.calls) == 2


def test_get_with_a_body_goes_by(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    one.get()
    asked = incoming()
    asked.body = b"query"
    assert one.cache.serve(asked, origin.load(asked)).header("x-cache") == "BYPASS"


def test_client_may_ask_for_a_newer_answer_and_for_none_but_a_stored_one(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    with pytest.raises(Refused) as refused:
        one.get(cache_control="only-if-cached")
    assert refused.value.status == 504
    one.get()
    assert one.state(cache_control="only-if-cached") == "HIT"
    origin.body, origin.headers["ETag"] = b"two", '"2"'
    assert one.get(cache_control="no-cache").body == b"two"
    assert one.get().body == b"two"
    assert one.state(cache_control="max-age=30") == "HIT"
    assert one.state(cache_control="min-fresh=59.5") == "HIT"
    assert one.state(cache_control="min-fresh=70") in ("HIT", "MISS")


def test_reload_by_many_at_once_costs_a_call_or_two(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    one.get()
    origin.takes_s = 0.2
    at_once(30, lambda _: one.get(cache_control="no-cache"))
    assert len(origin.calls) <= 3


def test_part_is_kept_as_declared_and_ended_by_a_write(pair: Pair, origin: Origin) -> None:
    one, other = pair
    calls: list[int] = []

    def load() -> Answer:
        calls.append(1)
        return Answer(200, [("Cache-Control", "no-cache")], f"{len(calls)}".encode(), source="pears-1")

    policy = PartPolicy(1, 5, 60)
    first = one.cache.part("pears", f"{PATH}?a=1", policy, load)
    assert (first.state, first.answer.body) == ("MISS", b"1")
    hit = other.cache.part("pears", f"{PATH}?a=1", policy, load)
    assert (hit.state, hit.answer.body, hit.age_s, hit.stale_s) == ("HIT", b"1", 0, 0)
    later(2.1)
    stale = other.cache.part("pears", f"{PATH}?a=1", policy, load)
    assert (stale.state, stale.answer.body, stale.stale_s) == ("STALE", b"1", 1)
    eventually(lambda: other.cache.part("pears", f"{PATH}?a=1", policy, load).answer.body == b"2", 3)
    one.get(method="PUT")
    assert one.cache.part("pears", f"{PATH}?a=1", policy, load).answer.body == b"3"


def test_part_of_scope_subject_is_its_subjects(pair: Pair) -> None:
    one, _ = pair
    policy = PartPolicy(60, scope="subject")

    def part(who: Identity | None) -> tuple[str, object]:
        text = who.subject if who else "nobody"
        found = one.cache.part("pears", PATH, policy, lambda: Answer(200, [], text.encode()), identity=who)
        return found.state, found.answer.body

    assert [part(ANN), part(BOB)] == [("MISS", b"ann"), ("MISS", b"bob")]
    assert [part(ANN), part(BOB)] == [("HIT", b"ann"), ("HIT", b"bob")]
    assert part(None) == part(None) == ("BYPASS", b"nobody")
    # What is forwarded on the same path is another thing.
    assert one.state(who=ANN) == "MISS"
