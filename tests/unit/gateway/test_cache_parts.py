"""The cache's pieces without Redis: names, the memory, marks of what is not stored, an entry's form, single flight."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from discovery.errors import ResponseTimeout
from gateway.cache.entry import Entry, give, pack, pass_on, unpack
from gateway.cache.key import GUESS, Base, Spec, Variant, audience, base_of, read_spec, variant_of
from gateway.cache.loading import Copied, read_whole
from gateway.cache.memory import MAX_MARKS, MAX_SPECS, PASS_S, Held, Memory, Passing
from gateway.cache.rules import Lifetime
from gateway.cache.trust import REMEMBERED
from gateway.model import Answer
from services.kit.auth.verifier import Identity
from services.kit.stale.stored_form import Change
from tests.support.clock import ManualClock
from tests.support.eventually import time_scale
from tests.support.incoming import incoming

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


def test_host_that_the_client_named_is_in_the_key() -> None:
    assert base_of(incoming(x_forwarded_host="a")) != base_of(incoming(x_forwarded_host="evil"))
    assert base_of(incoming(x_forwarded_host="a")) != base_of(
        incoming(x_forwarded_host="a", x_forwarded_proto="http")
    )
    assert base_of(incoming()) != base_of(replace(incoming(), host="evil"))
    assert base_of(incoming()) != base_of(incoming(x_forwarded_prefix="/evil"))


def test_own_answer_has_its_subjects_name_and_scopes_in_the_key() -> None:
    names = {
        audience(identity)
        for identity in (
            ANN,
            Identity("bob", ANN.scopes, NOW),
            Identity("ann", ANN.scopes | {"admin"}, NOW),
            Identity("ann", ANN.scopes, NOW, by_key=True),
            Identity('ann",false,"user', frozenset(), NOW),
        )
    }
    assert len(names) == 5
    assert audience(None) is None
    # The same person with another token is the same.
    assert audience(ANN) == audience(Identity("ann", ANN.scopes, 0))


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
    # More changes than are remembered: it cannot be known.
    for _ in range(REMEMBERED + 1):
        memory.change("apples", Change("/a"))
    assert not memory.put(variant("/b"), held(), before)


def test_marks_are_for_one_kind_of_sender_and_for_a_while() -> None:
    clock = ManualClock()
    passing = Passing(clock.monotonic)
    token = {"authorization": "x"}
    passing.learn(BASE, token, stored=False)
    assert passing.passes(BASE, {"authorization": "y"}, looks=True)
    assert not passing.passes(BASE, {}, looks=True)
    clock.sleep(PASS_S)
    assert passing.passes(BASE, token, looks=False)
    # One finds out, the others go on as before.
    assert [passing.passes(BASE, token, looks=True) for _ in range(3)] == [False, True, True]
    passing.learn(BASE, token, stored=True)
    assert not passing.passes(BASE, token, looks=True)
    for number in range(2 * MAX_MARKS):
        passing.learn(variant(f"/{number}").base, token, stored=False)
    assert len(passing) == MAX_MARKS


def test_long_names_count_or_are_not_kept() -> None:
    memory = Memory(max_bytes=100_000)
    for number in range(200):
        memory.put(variant(query=f"{number}" + "x" * 2000), held(), memory.now())
    assert memory.bytes <= 100_000
    assert memory.spec(BASE) is None
    for spec in (Spec((), True), GUESS):
        memory.learn(BASE, spec)
        assert memory.spec(BASE) == spec
    for number in range(2 * MAX_SPECS):
        memory.learn(variant(f"/{number}" + "x" * 100).base, GUESS)
    known = [memory.spec(variant(f"/{number}" + "x" * 100).base) for number in range(2 * MAX_SPECS)]
    assert known == [None] * MAX_SPECS + [GUESS] * MAX_SPECS


def test_change_of_a_prefix_costs_what_it_ends_and_not_what_is_held() -> None:
    memory = Memory()
    for number in range(1000):
        memory.put(variant(f"/api/pears/{number}/seeds"), held(), memory.now())

    def cost_s(path: str) -> float:
        began = time.perf_counter()
        memory.change("pears", Change(path, prefix=True))
        return time.perf_counter() - began

    assert min(cost_s(f"/api/pears/{number}") for number in range(100)) < 100e-6 * time_scale()
    assert memory.get(variant("/api/pears/99/seeds")) is None
    assert memory.get(variant("/api/pears/100/seeds")) is not None
    memory.change("pears", Change("/", prefix=True))
    assert memory.bytes == 0


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
    came = pass_on(
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
    whole = b"".join(bytes([n]) * 10 for n in range(10))

    def chunks() -> object:
        for number in range(10):
            read.append(number)
            yield bytes([number]) * 10

    told = Answer(200, [("Content-Length", "100")], chunks())  # type: ignore[arg-type]
    assert read_whole(told, 99, lambda: True) is None
    assert read == []
    short = Answer(200, [("Content-Length", "100")], chunks())  # type: ignore[arg-type]
    assert read_whole(short, 100, lambda: True) == short.body == whole
    read.clear()
    slow = Answer(200, [("Content-Length", "100")], chunks())  # type: ignore[arg-type]
    assert read_whole(slow, 100, lambda: len(read) < 3) is None
    assert read == [0, 1, 2]
    assert b"".join(slow.body) == whole  # type: ignore[arg-type]


@pytest.mark.parametrize(("most", "steps", "kept"), [(9, 9, True), (8, 9, False), (9, 2, False)])
def test_body_of_untold_length_is_kept_once_it_has_come_whole_and_in_time(
    most: int, steps: int, kept: bool
) -> None:
    found: list[bytes] = []
    left = iter(range(steps))
    body = Copied(iter([b"one", b"two", b"six"]), most, lambda: next(left, None) is not None, found.append)
    assert next(body) == b"one"
    assert found == []
    assert b"".join(body) == b"twosix"
    assert found == ([b"onetwosix"] if kept else [])


def test_body_that_breaks_off_is_not_kept() -> None:
    found: list[bytes] = []

    def broken() -> Iterator[bytes]:
        yield b"one"
        raise ResponseTimeout("pears")

    body = Copied(broken(), 100, lambda: True, found.append)
    assert next(body) == b"one"
    with pytest.raises(ResponseTimeout):
        next(body)
    body.close()
    assert found == []
