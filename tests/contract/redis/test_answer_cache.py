"""Two instances of the gateway's cache on one real Redis: what they share, wait for, forget, and never take for good."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from discovery.errors import NoInstance, ResponseLost, ResponseTimeout
from gateway.cache.key import Names, Variant, base_of
from gateway.cache.memory import PASS_S
from gateway.cache.store import LEASE_MS, LOAD_S, Leases
from gateway.errors import Refused
from gateway.model import Answer
from tests.support.cache_rig import (
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
from tests.support.eventually import eventually, time_scale

Pair = tuple[Instance, Instance]


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
    one, _ = pair
    assert one.state(method="HEAD") == "BYPASS"
    one.get()
    answer = one.get(method="HEAD")
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
    origin.body, origin.takes_s = b"two", 0.3
    origin.headers |= {"ETag": '"2"', "Cache-Control": "public, max-age=60"}
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


def test_lifetimes_of_what_was_stored_together_do_not_end_together(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    origin.headers["Cache-Control"] = "public, max-age=600"
    paths = [f"/api/pears/{number}" for number in range(20)]
    for seconds, asked in (
        (0, range(20, 21)),
        (539, range(20, 21)),
        (31, range(21, 40)),
        (31, range(40, 41)),
    ):
        later(seconds)
        for path in paths:
            one.get(path)
        assert len(origin.calls) in asked


# -- one for all


def test_many_who_want_what_nobody_has_seen_cost_one_call(pair: Pair, origin: Origin) -> None:
    origin.takes_s = 0.2
    given = at_once(60, lambda number: pair[number % 2].get())
    assert {answer.body for answer in given} == {b"one"}
    assert len(origin.calls) == 1
    # Now it is known to be public, also for requests with a token.
    pair[0].cache.purge("pears", PATH)
    given = at_once(60, lambda number: pair[0].get(who=(ANN, BOB, None)[number % 3]))
    assert {answer.body for answer in given} == {b"one"}
    assert len(origin.calls) == 2


def test_request_with_a_token_waits_for_nobody_where_nothing_has_been_seen(pair: Pair) -> None:
    """Neither for another's private answer nor for another's failure, in this process or another."""
    one, other = pair
    asked = threading.Event()
    over = threading.Event()

    def slow(_: object) -> Answer:
        asked.set()
        over.wait(10)
        raise NoInstance("pears", "anns")

    ann = threading.Thread(
        target=lambda: pytest.raises(NoInstance, one.cache.serve, incoming(who=ANN), slow), daemon=True
    )
    ann.start()
    assert asked.wait(5)
    private = [("Cache-Control", "private, max-age=60")]
    began = time.perf_counter()
    for each in pair:
        bob = each.cache.serve(incoming(who=BOB), lambda _: Answer(200, private, b"bobs"))
        assert bob.body == b"bobs"
        assert each.cache.serve(incoming(), lambda _: Answer(200, private, b"all")).body == b"all"
    assert time.perf_counter() - began < 1 * time_scale()
    over.set()
    ann.join(5)


def test_failure_of_one_with_little_time_is_nobody_elses(pair: Pair, origin: Origin) -> None:
    one, other = pair
    asked, over = threading.Event(), threading.Event()

    def late(_: object) -> Answer:
        asked.set()
        over.wait(10)
        raise ResponseTimeout("pears")

    hasty = threading.Thread(
        target=lambda: pytest.raises(ResponseTimeout, one.cache.serve, incoming(within_s=3.0), late)
    )
    hasty.start()
    assert asked.wait(5)
    began = time.perf_counter()
    assert [one.state(), other.state()] == ["MISS", "HIT"]
    assert time.perf_counter() - began < 1 * time_scale()
    over.set()
    hasty.join(5)
    assert len(origin.calls) == 1


@pytest.mark.parametrize("failure", [ResponseTimeout("pears"), Refused(504, "over")])
def test_failure_that_is_the_leaders_own_is_not_the_others(
    pair: Pair, origin: Origin, failure: Exception
) -> None:
    one, _ = pair
    origin.takes_s = 0.1
    first = threading.Event()

    def get(_: int) -> Answer:
        wanted = incoming()

        def load(extra: dict[str, str]) -> Answer:
            if not first.is_set():
                first.set()
                time.sleep(0.1)
                raise failure
            return origin.load(wanted)(extra)

        return one.cache.serve(wanted, load)

    given = at_once(10, get)
    assert given.count(failure) == 1
    assert sum(isinstance(each, Answer) and each.body == b"one" for each in given) == 9
    assert len(origin.calls) == 1


def test_changes_without_end_do_not_let_everybody_ask(pair: Pair, origin: Origin) -> None:
    """What cannot be kept because its path changes all the time is still shared by the requests that wait for it."""
    one, _ = pair
    origin.takes_s = 0.1
    over = threading.Event()

    def write() -> None:
        while not over.wait(0.005):
            one.cache.purge("pears", PATH)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        given = at_once(60, lambda _: one.get())
    finally:
        over.set()
        writer.join(5)
    assert {answer.body for answer in given} == {b"one"}
    assert len(origin.calls) <= 4


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
    # Once the mark is over one request looks again, and no other waits for it.
    later(PASS_S + 0.1)
    began = time.perf_counter()
    at_once(20, lambda _: one.get())
    assert time.perf_counter() - began < 0.55 * time_scale()
    later(PASS_S + 0.1)
    origin.headers = dict(PUBLIC)
    assert [one.state(), one.state()] == ["MISS", "HIT"]


def test_failure_of_the_one_who_asked_is_everybodys(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    origin.takes_s, origin.error = 0.2, NoInstance("pears", "gone")
    given = at_once(20, lambda _: one.get())
    assert {(type(error), str(error)) for error in given} == {(NoInstance, str(origin.error))}
    assert len(origin.calls) <= 2


def test_lease_of_one_who_died_is_taken_over(pair: Pair, redis: Redis, origin: Origin) -> None:
    one, other = pair
    one.get()
    redis.delete(*keys(redis, "gateway:business:c:a:*"))
    for each in pair:
        each.forget_here()
    assert keys(redis, "gateway:business:c:l:*") == []  # given back after the load
    # A process holds it, and is never heard of again.
    name = Names("business").lease(Variant(base_of(incoming()), (), (), "").text())
    redis.set(name, "dead", px=600)
    began = time.perf_counter()
    assert other.state() == "MISS"
    assert 0.4 < time.perf_counter() - began < 3 * time_scale()


def test_lease_is_kept_up_while_its_load_lasts(pair: Pair, redis: Redis, origin: Origin) -> None:
    one, other = pair
    origin.takes_s = 2.2 * LEASE_MS / 1000
    given = at_once(2, lambda number: (one, other)[number].state())
    assert sorted(given) == ["HIT", "MISS"]
    assert len(origin.calls) == 1
    assert keys(redis, "gateway:business:c:l:*") == []


def test_leases_are_kept_up_while_they_are_ones_own(redis: Redis) -> None:
    now = 100.0
    leases = Leases(lambda: now)
    for name, owner in (("held", "me"), ("another's", "she")):
        redis.set(name, owner, px=400)
    redis.lpush("no lease", "a")
    for name in ("held", "another's", "no lease"):
        leases.take(name, "me")
    leases.keep_up(redis)
    assert 400 < redis.pttl("held") <= LEASE_MS
    assert redis.get("another's") == b"she"
    assert 0 < redis.pttl("another's") <= 400
    now += LOAD_S
    redis.set("held", "me", px=400)
    leases.keep_up(redis)
    assert 0 < redis.pttl("held") <= 400


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


def test_answer_that_pauses_is_passed_on_at_once_and_stored_at_its_end(pair: Pair) -> None:
    one, other = pair
    more = threading.Event()

    def load(_: object) -> Answer:
        return Answer(200, list(PUBLIC.items()), pieces(), source="pears-1")

    def pieces() -> Iterator[bytes]:
        yield b"one "
        assert more.wait(5)
        yield b"two"

    answer = one.cache.serve(incoming(), load)
    assert (answer.header("x-cache"), answer.header("content-length")) == ("MISS", None)
    chunks = iter(answer.body)
    assert next(chunks) == b"one "  # type: ignore[comparison-overlap]
    # No other request waits for that client's pace.
    assert other.cache.serve(incoming(), lambda _: Answer(503, [], b"mine")).body == b"mine"
    more.set()
    assert list(chunks) == [b"two"]
    for each in pair:
        stored = each.get()
        assert (stored.body, stored.header("content-length")) == (b"one two", "7")


def test_request_that_is_not_for_a_cache_goes_by(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    one.get()
    assert one.state(cookie="session=1") == "BYPASS"
    asked = incoming()
    asked.body = b"query"
    assert one.cache.serve(asked, origin.load(asked)).header("x-cache") == "BYPASS"


def test_client_may_ask_for_a_newer_answer(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    one.get()
    origin.body, origin.headers["ETag"] = b"two", '"2"'
    assert one.get(cache_control="no-cache").body == b"two"
    assert one.get().body == b"two"
    assert one.state(cache_control="max-age=30") == "HIT"


def test_reload_by_many_at_once_costs_a_call_or_two(pair: Pair, origin: Origin) -> None:
    one, _ = pair
    one.get()
    origin.takes_s = 0.2
    at_once(30, lambda _: one.get(cache_control="no-cache"))
    assert len(origin.calls) <= 3
