"""What a composition does in place of asking a service once: fallbacks, caches, wholes that are kept, and hedges."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gevent
import pytest

from discovery import (
    ConnectFailed,
)
from gateway.cache import PartPolicy
from gateway.cache.rules import Scope
from gateway.compose import Compositions
from gateway.errors import PartFailed
from gateway.model import Answer
from services.kit.auth.verifier import Identity
from tests.support.eventually import time_scale
from tests.support.incoming import incoming, person
from tests.unit.gateway.composing import (
    PAIR,
    PUBLIC,
    Behave,
    Reply,
    Store,
    Upstreams,
    answers,
    ask,
    compositions,
    one,
    raises,
    said,
)


def test_the_last_good_answer_stands_in_for_a_part(tmp_path: Path) -> None:
    text = PAIR.replace("required = true", 'required = true, fallback = "last-good"')
    store = Store(good=Answer(200, [("X-Stale-Age", "12")], b'{"data":{"old":1}}', source="stale"))
    upstreams = Upstreams({"lefts": raises(ConnectFailed("lefts", attempts=3)), "rights": answers(b"1")})
    answer = ask(compositions(tmp_path, text, upstreams, cache=store), incoming("/pair/7", who=person()))
    told = said(answer)
    assert told["left"] == {"old": 1}
    assert told["_parts"]["left"] == {
        "status": "stale",
        "source": "stale",
        "age": 12,
        "attempts": 3,
        "reason": "lefts cannot be reached",
    }
    assert told["_complete"] is True
    assert answer.header("x-stale-age") == "12"
    assert answer.header("cache-control") == "no-store"
    assert store.asked == [("lefts", "/lefts/7", PartPolicy(ttl_s=0), person())]


def test_there_is_time_left_for_what_stands_in_for_a_part_that_hangs(tmp_path: Path) -> None:
    text = PAIR.replace("required = true", 'required = true, fallback = "last-good"')
    store = Store(good=Answer(200, [], b'{"data":{"old":1}}', source="stale"))
    upstreams = Upstreams({"lefts": answers(after_s=30), "rights": answers(b"1")})
    began = time.monotonic()
    told = said(ask(compositions(tmp_path, text, upstreams, cache=store)))
    assert time.monotonic() - began < 1.1 * time_scale()
    assert (told["left"], told["_parts"]["left"]["reason"]) == ({"old": 1}, "no answer in time")


@pytest.mark.parametrize("behave", [answers(b"{}", 403), answers(b"{}", 404), answers(b"{}", 401)])
def test_nothing_stands_in_for_a_refusal(tmp_path: Path, behave: Behave) -> None:
    text = PAIR.replace("required = true", 'required = true, fallback = "last-good"')
    store = Store(good=Answer(200, [], b'{"data":{"old":1}}', source="stale"))
    with pytest.raises(PartFailed):
        ask(compositions(tmp_path, text, Upstreams({"lefts": behave, "rights": answers(b"1")}), cache=store))
    assert store.asked == []


def test_an_empty_fallback_is_told_as_one(tmp_path: Path) -> None:
    text = PAIR.replace(
        'path = "/rights/<id>"', 'path = "/rights/<id>", fallback = "empty", expect = "array"'
    )
    told = said(
        ask(compositions(tmp_path, text, Upstreams({"lefts": answers(), "rights": answers(b"{}", 500)})))
    )
    assert (told["right"], told["_complete"]) == ([], False)
    assert told["_parts"]["right"]["status"] == "fallback"
    assert told["_parts"]["right"]["source"] == "declaration"


def kept_as(scope: str) -> str:
    return PAIR.replace("required = true", f'required = true, cache = {{ ttl_s = 5, scope = "{scope}" }}')


@pytest.mark.parametrize(("scope", "kept_for"), [("public", None), ("subject", person())])
def test_what_is_kept_for_all_is_asked_for_without_a_token(
    tmp_path: Path, scope: Scope, kept_for: Identity | None
) -> None:
    upstreams, store = Upstreams({"lefts": answers(), "rights": answers(b"1")}), Store()
    ask(compositions(tmp_path, kept_as(scope), upstreams, cache=store), incoming("/pair/7", who=person()))
    sent = {service: options["headers"] for service, _, options in upstreams.sent}
    assert ("authorization" in sent["lefts"], "authorization" in sent["rights"]) == (scope == "subject", True)
    assert store.asked == [("lefts", "/lefts/7", PartPolicy(ttl_s=5, scope=scope), kept_for)]


def test_a_part_out_of_the_cache_says_so(tmp_path: Path) -> None:
    body = Answer(
        200, [("Cache-Control", "public, max-age=60")], b'{"data":{}}', source="lefts-1", attempts=1
    )
    store = Store(kept=body.with_headers(("X-Cache", "HIT"), ("Age", "4")))
    upstreams = Upstreams({"lefts": answers(), "rights": answers(b"1", cache_control="public, max-age=60")})
    answer = ask(compositions(tmp_path, kept_as("public"), upstreams, cache=store))
    assert said(answer)["_parts"]["left"] == {"status": "ok", "source": "cache", "age": 4, "attempts": 0}
    assert answer.header("x-cache") == "HIT"
    assert answer.header("cache-control") == "public, max-age=56"


def test_what_is_of_no_use_is_never_kept(tmp_path: Path) -> None:
    """A 200 that is no JSON must not fill the cache for as long as a good one would."""
    raised: list[BaseException] = []

    class Watching(Store):
        def part(self, *given: Any, **options: Any) -> Answer:
            try:
                return super().part(*given, **options)
            except Exception as error:
                raised.append(error)
                raise

    upstreams = Upstreams({"lefts": answers(b"<html>"), "rights": answers(b"1")})
    with pytest.raises(PartFailed):
        ask(compositions(tmp_path, kept_as("public"), upstreams, cache=Watching()))
    assert len(raised) == 1


@pytest.mark.parametrize(
    "right",
    [
        answers(b"1", cache_control="private, max-age=60"),
        answers(b"1", cache_control="public, no-cache"),
        answers(b"1", cache_control="no-store"),
        answers(b"1"),
        answers(b"1", vary="Accept-Language", **PUBLIC),
        answers(b"1", vary="*", **PUBLIC),
        answers(b"{}", 500, **PUBLIC),
    ],
)
def test_a_whole_with_a_part_that_is_not_for_all_is_made_each_time(tmp_path: Path, right: Behave) -> None:
    upstreams = Upstreams({"lefts": answers(**PUBLIC), "rights": right})
    made = compositions(tmp_path, PAIR, upstreams)
    assert [ask(made).header("x-cache") for _ in range(2)] == [None, None]
    assert len(upstreams.sent) == 4


def test_a_whole_with_a_part_that_is_kept_for_its_subject_is_nobody_elses(tmp_path: Path) -> None:
    """Though the part's service calls its answer public."""

    def named(asked: dict[str, Any]) -> Reply:
        body = json.dumps({"data": {"of": asked["headers"]["authorization"]}}).encode()
        return Reply(body, headers={"cache-control": "public, max-age=60"})

    upstreams = Upstreams({"lefts": named, "rights": answers(b"1", **PUBLIC)})
    made = compositions(tmp_path, kept_as("subject"), upstreams, cache=Store())
    for who in ("ann", "bob", "ann"):
        answer = ask(made, incoming("/pair/7", who=person(who)))
        assert said(answer)["left"] == {"of": f"Bearer {who}"}
        assert answer.header("cache-control") == "private, max-age=60"


def test_a_whole_is_kept_apart_by_what_was_passed_on(tmp_path: Path) -> None:
    text = PAIR.replace('"/rights/<id>"', '"/rights/<id>", headers = ["Accept-Language"]')
    upstreams = Upstreams(
        {"lefts": answers(**PUBLIC), "rights": answers(b"1", vary="Accept-Language", **PUBLIC)}
    )
    made = compositions(tmp_path, text, upstreams)
    told = [
        ask(made, incoming("/pair/7", accept_language=each)).header("x-cache") for each in ("de", "fr", "de")
    ]
    assert told == ["MISS", "MISS", "HIT"]


def hedging(upstreams: Upstreams, folder: Path, there: int = 2) -> Compositions:
    text = PAIR.replace("required = true", "required = true, hedge = true")
    instances = [one("lefts", number + 1) for number in range(there)] + [one("rights")]
    return compositions(folder, text, upstreams, there=instances)


def slow_first(after_s: float) -> Behave:
    calls = []

    def behave(options: dict[str, Any]) -> Reply:
        calls.append(options)
        if len(calls) == 1:
            options["places"].add("first's place")
            gevent.sleep(after_s)
        assert len(calls) == 1 or "first's place" in options["places"]
        return Reply(attempts=1)

    return behave


@pytest.mark.parametrize(
    ("p95_s", "budget", "there"),
    [(None, 1000, 2), (0.02, 0, 2), (0.02, 1000, 1)],
    ids=["unknown", "spent", "alone"],
)
def test_no_hedge_without_a_measure_a_budget_and_another_instance(
    tmp_path: Path, p95_s: float | None, budget: int, there: int
) -> None:
    upstreams = Upstreams({"lefts": slow_first(0.1), "rights": answers(b"1")}, p95_s=p95_s, budget=budget)
    ask(hedging(upstreams, tmp_path, there))
    assert [service for service, _, _ in upstreams.sent].count("lefts") == 1
