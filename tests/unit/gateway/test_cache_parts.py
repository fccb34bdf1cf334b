"""The cache's pieces without Redis: names, the memory, marks of what is not stored, an entry's form, single flight."""

from __future__ import annotations

import threading
import time

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeout

from discovery.errors import BreakerOpen, DeadlineExceeded, ResponseLost
from gateway.cache.circuit import OPEN_S, Away, Circuit
from gateway.cache.entry import Entry, pack, unpack
from gateway.cache.flights import Flights, again
from gateway.cache.freshness import Lifetime
from gateway.cache.giving import give, passed_on, read_whole
from gateway.cache.keys import GUESS, Base, Spec, Variant, audience_of, base_of, read_spec, variant_of
from gateway.cache.memory import REMEMBERED, Held, Memory
from gateway.cache.passing import PASS_S, Passing
from gateway.model import Answer, Incoming
from services.kit.answers import Change
from services.kit.auth import Identity
from tests.support.clock import ManualClock

NOW = 1_800_000_000.0
ANN = Identity("ann", frozenset({"user"}), NOW)
BASE = Base("pears", "/api/pears/1", "", ("edge", "https"))


def entry(body: bytes = b"x", version: str = "v") -> Entry:
    return Entry(200, [("ETag", '"1"')], body, NOW, Lifetime(60, 5, 5), version)


def variant(path: str = "/api/pears/1", query: str = "", audience: str = "") -> Variant:
    return Variant(Base("pears", path, query, ()), (), (), audience)


def held(size: int = 1) -> Held:
    return Held(entry(bytes(size)), 0.0, 0.0)


# -- names


def incoming(**headers: str) -> Incoming:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return Incoming("GET", "/api/pears/1", "a=1", sent, "pears", "business", "", "", "", time.monotonic() + 5)


def test_host_that_the_client_named_is_in_the_key() -> None:
    assert base_of(incoming(x_forwarded_host="a")) != base_of(incoming(x_forwarded_host="evil"))
    assert base_of(incoming(x_forwarded_host="a")) != base_of(
        incoming(x_forwarded_host="a", x_forwarded_proto="http")
    )


def test_own_answer_has_its_subjects_name_and_scopes_in_the_key() -> None:
    token = {"authorization": "Bearer x"}
    names = {
        audience_of(token, identity)
        for identity in (
            ANN,
            Identity("bob", ANN.scopes, NOW),
            Identity("ann", ANN.scopes | {"admin"}, NOW),
            Identity("ann", ANN.scopes, NOW, by_key=True),
            Identity('ann",false,"user', frozenset(), NOW),
        )
    } | {audience_of({}, None)}
    assert len(names) == 6
    assert audience_of(token, None) is None
    assert audience_of({**token, "cookie": "a"}, ANN) is None
    assert audience_of({"x-api-key": "a"}, None) is None
    # The same person with another token is the same.
    assert audience_of(token, ANN) == audience_of(
        {"authorization": "Bearer y"}, Identity("ann", ANN.scopes, 0)
    )


def test_variant_follows_the_headers_that_the_answer_named() -> None:
    spec = Spec(("accept-language",), False)
    german = variant_of(BASE, spec, {"accept-language": "de"}, None)
    assert german == variant_of(BASE, spec, {"accept-language": " de "}, "ann")
    assert german != variant_of(BASE, spec, {"accept-language": "en"}, None)
    assert german != variant_of(BASE, spec, {}, None)
    assert variant_of(BASE, spec, {}, None) != variant_of(BASE, spec, {"accept-language": ""}, None)
    assert variant_of(BASE, Spec((), True), {}, None) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("gzip, br", "br,gzip", True),
        ("gzip;q=0.5", "gzip", True),
        ("gzip;q=0", "", True),
        ("gzip", "br", False),
        ("gzip, nonsense", "gzip", True),
    ],
)
def test_encodings_that_mean_the_same_share_an_answer(one: str, other: str, same: bool) -> None:
    spec = Spec(("accept-encoding",), False)
    found = [variant_of(BASE, spec, {"accept-encoding": each}, None) for each in (one, other)]
    assert (found[0] == found[1]) == same


def test_different_variants_have_different_texts() -> None:
    parts = ["", "a", "b", '","', "[]", "a,b"]
    texts = {
        Variant(Base(service, path, query, (rest,)), (name,), (name,), audience).text()
        for service in parts
        for path in parts
        for query in parts[:3]
        for rest in parts[:3]
        for name in parts
        for audience in parts
    }
    assert len(texts) == 6 * 6 * 3 * 3 * 6 * 6


@pytest.mark.parametrize("spec", [GUESS, Spec(("a", "b"), True), Spec(("accept",), False)])
def test_spec_is_read_back(spec: Spec) -> None:
    assert read_spec(spec.text().encode()) == spec


@pytest.mark.parametrize(
    "data", [b"", b"+", b"a", b"\xff+own", b",+own", b"+own,+nobody", b"a," * 300 + b"+own"]
)
def test_spec_that_nobody_wrote_is_none(data: bytes) -> None:
    assert read_spec(data) is None


# -- the memory


def test_least_recently_used_leaves_first_and_bytes_are_bounded() -> None:
    memory = Memory(max_bytes=10 * (held(10_000).entry.size + variant().size))
    for number in range(10):
        assert memory.put(variant(f"/{number}"), held(10_000), memory.now())
    assert memory.get(variant("/0")) is not None
    memory.put(variant("/10"), held(10_000), memory.now())
    assert memory.get(variant("/0")) is not None
    assert memory.get(variant("/1")) is None
    for number in range(100):
        memory.put(variant("/0", str(number)), held(10_000), memory.now())
    assert memory.bytes <= 10 * (held(10_000).entry.size + variant().size)
    assert not memory.put(variant("/large"), held(40_000), memory.now())


def test_change_takes_all_queries_and_callers_of_its_path_and_no_other() -> None:
    memory = Memory()
    mine = [variant(), variant(query="q=1"), variant(audience="ann"), variant("/api/pears/%31")]
    others = [variant("/api/pears"), variant("/api/pears/1/x"), variant("/api/pears/12")]
    for each in [*mine, *others]:
        memory.put(each, held(), memory.now())
    memory.change("apples", Change("/api/pears/1", prefix=True))
    assert all(memory.get(each) for each in mine)
    memory.change("pears", Change("/api/pears/1"))
    assert not any(memory.get(each) for each in mine)
    assert all(memory.get(each) for each in others)
    memory.change("pears", Change("/api/pears/1", prefix=True))
    assert [each.base.path for each in others if memory.get(each)] == ["/api/pears", "/api/pears/12"]
    memory.change("pears", Change("/", prefix=True))
    assert not any(memory.get(each) for each in others)
    assert memory.bytes == 0


def test_what_was_begun_before_a_change_is_not_kept_after_it() -> None:
    memory = Memory()
    before = memory.now()
    memory.change("pears", Change("/api/pears/2"))
    assert memory.put(variant(), held(), before)
    memory.change("pears", Change("/api/pears/1"))
    assert not memory.put(variant(), held(), before)
    assert memory.put(variant(), held(), memory.now())
    # More changes than are remembered: nobody can tell.
    for _ in range(REMEMBERED + 1):
        memory.change("apples", Change("/a"))
    assert not memory.put(variant("/b"), held(), before)


def test_marks_are_for_one_kind_of_sender_and_for_a_while() -> None:
    clock = ManualClock()
    passing = Passing(clock.monotonic)
    passing.mark(BASE, {"cookie": "a"})
    assert passing.passes(BASE, {"cookie": "b"})
    assert not passing.passes(BASE, {})
    assert not passing.passes(BASE, {"cookie": "b", "authorization": "x"})
    clock.sleep(PASS_S)
    assert not passing.passes(BASE, {"cookie": "b"})


def test_long_names_count_and_guesses_are_not_remembered() -> None:
    memory = Memory(max_bytes=100_000)
    for number in range(200):
        memory.put(variant(query=f"{number}" + "x" * 2000), held(), memory.now())
    assert len(memory._held) < 25
    for number in range(5):
        memory.learn(variant(f"/{number}").base, GUESS, GUESS)
    assert len(memory._specs) == 0
    memory.learn(BASE, Spec((), True), GUESS)
    assert memory.spec(BASE) == Spec((), True)
    memory.learn(BASE, GUESS, GUESS)
    assert memory.spec(BASE) is None


# -- an entry's form


def test_entry_is_read_back_under_its_name_and_not_before_its_time() -> None:
    data = pack("name", entry())
    assert unpack("name", data, NOW) == Entry(200, [("ETag", '"1"')], b"x", NOW, Lifetime(60, 5, 5), "v")
    assert unpack("other", data, NOW) is None
    assert unpack("name", data, NOW - 3600) is None
    assert unpack("name", data[:-1], NOW) is None


@pytest.mark.parametrize(
    "bad",
    [
        Entry(99, [], b"", NOW, Lifetime(1)),
        Entry(200, [("a", "b\r\nc: d")], b"", NOW, Lifetime(1)),
        Entry(200, [("", "b")], b"", NOW, Lifetime(1)),
        Entry(200, [], b"", NOW, Lifetime(-1)),
        Entry("200", [], b"", NOW, Lifetime(1)),  # type: ignore[arg-type]
        Entry(200, [("a",)], b"", NOW, Lifetime(1)),  # type: ignore[list-item]
        Entry(200, [], b"", "x", Lifetime(1)),  # type: ignore[arg-type]
    ],
)
def test_entry_that_could_not_be_sent_is_none(bad: Entry) -> None:
    assert unpack("name", pack("name", bad), NOW) is None


# -- what the client gets


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({}, 200),
        ({"if-none-match": '"1"'}, 304),
        ({"if-none-match": 'W/"1"'}, 304),
        ({"if-none-match": '"0", "1"'}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"2"'}, 200),
        ({"if-modified-since": "Thu, 01 Jan 2026 00:00:00 GMT"}, 304),
        ({"if-modified-since": "Wed, 31 Dec 2025 23:59:59 GMT"}, 200),
        ({"if-modified-since": "yesterday"}, 200),
        ({"if-none-match": '"2"', "if-modified-since": "Thu, 01 Jan 2026 00:00:00 GMT"}, 200),
    ],
)
def test_client_who_has_it_gets_304_from_store_and_service_alike(asked: dict[str, str], status: int) -> None:
    headers = [
        ("ETag", '"1"'),
        ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT"),
        ("Content-Type", "text/plain"),
    ]
    stored = give(asked, "GET", Entry(200, headers, b"body", NOW, Lifetime(1)), "HIT", 3.9)
    came = passed_on(
        asked, Answer(200, [*headers, ("Content-Length", "4"), ("X-Cache", "HIT")], b"body"), "MISS"
    )
    for answer, state in ((stored, "HIT"), (came, "MISS")):
        assert answer.status == status
        assert answer.body == (b"" if status == 304 else b"body")
        assert answer.header("content-length") == (None if status == 304 else "4")
        assert [value for name, value in answer.headers if name == "X-Cache"] == [state]
    assert stored.header("age") == "3"


def test_long_body_passes_on_unread_or_with_its_beginning() -> None:
    read: list[int] = []

    def chunks() -> object:
        for number in range(10):
            read.append(number)
            yield bytes([number]) * 10

    told = Answer(200, [("Content-Length", "100")], chunks())  # type: ignore[arg-type]
    assert read_whole(told, 99, lambda: True) is None
    assert read == []
    untold = Answer(200, [], chunks())  # type: ignore[arg-type]
    assert read_whole(untold, 35, lambda: True) is None
    assert read == [0, 1, 2, 3]
    assert b"".join(untold.body) == b"".join(bytes([n]) * 10 for n in range(10))  # type: ignore[arg-type]
    short = Answer(200, [], chunks())  # type: ignore[arg-type]
    assert read_whole(short, 100, lambda: True) == short.body
    assert short.header("content-length") == "100"
    read.clear()
    slow = Answer(200, [("Content-Length", "100")], chunks())  # type: ignore[arg-type]
    assert read_whole(slow, 100, lambda: len(read) < 3) is None
    assert read == [0, 1, 2]
    assert len(b"".join(slow.body)) == 100  # type: ignore[arg-type]


# -- what says that Redis is not well


@pytest.mark.parametrize(
    ("error", "ill"),
    [
        (RedisTimeout("Timeout reading from socket"), True),
        (RedisConnectionError("Connection refused"), True),
        (ReadOnlyError("You can't write against a read only replica."), True),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), True),
        (ResponseError("MISCONF Errors writing to the AOF file"), True),
        (OSError("broken pipe"), True),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), False),
        (RedisConnectionError("No connection available."), False),
        (ResponseError("WRONGTYPE Operation against a key"), False),
    ],
)
def test_circuit_opens_for_what_is_redis_own_and_then_asks_nothing(error: Exception, ill: bool) -> None:
    clock, calls = ManualClock(), []

    def ask(_: Redis) -> None:
        calls.append(1)
        raise error

    circuit = Circuit(Redis(), clock.monotonic)
    for _ in range(3):
        with pytest.raises(Away):
            circuit.run(ask)
    assert (len(calls), circuit.closed) == ((1, False) if ill else (3, True))
    clock.sleep(OPEN_S)
    assert circuit.closed


# -- single flight


def test_one_leads_and_the_others_wait_until_he_leaves() -> None:
    flights = Flights()
    flight, leads = flights.enter("key")
    assert leads
    joined = [flights.enter("key") for _ in range(3)]
    assert joined == [(flight, False)] * 3
    assert not flight.wait(0.01)
    threading.Timer(0.02, flights.leave, ("key", flight)).start()
    assert flight.wait(5)
    assert flights.enter("key")[1]


def test_failure_is_shared_unless_it_is_the_leaders_own() -> None:
    flights = Flights()
    flight, _ = flights.enter("key")
    flight.failed(DeadlineExceeded("pears", sent=True))
    assert flight.error is None
    flight.failed(ResponseLost("pears", "gone", attempts=2))
    assert flight.error is not None


def test_error_for_another_is_the_same_and_not_the_same_object() -> None:
    error = BreakerOpen("pears", retry_after_s=2.5, attempts=1)
    copy = again(error)
    assert copy is not error
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
