"""A composition at work: parts side by side, one deadline, and the answer when they fail. Upstreams are functions here;
tests/integration/test_gateway_compose.py has real ones."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import gevent
import pytest

from discovery import (
    BreakerOpen,
    ConnectFailed,
    DeadlineExceeded,
    NoInstance,
    ResponseLost,
)
from gateway.errors import Overloaded, PartFailed, Refused
from tests.support.eventually import time_scale
from tests.support.incoming import incoming, person
from tests.unit.gateway.composing import (
    PAIR,
    TOKEN,
    Behave,
    Upstreams,
    answers,
    ask,
    compositions,
    raises,
    said,
)


def test_parts_are_fetched_at_once(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(after_s=0.5), "rights": answers(b"1", after_s=0.5)})
    began = time.monotonic()
    answer = ask(compositions(tmp_path, PAIR, upstreams))
    assert time.monotonic() - began < 0.95  # one after the other: 1 s
    assert said(answer)["_complete"] is True
    assert (said(answer)["left"], said(answer)["right"]) == ({}, 1)


def test_a_part_is_asked_with_the_callers_token_and_nothing_else_of_his(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(), "rights": answers(b"1")})
    sent = {"cookie": "c", "x_auth_subject": "root", "accept_language": "de", "if_none_match": "*"}
    text = PAIR.replace('"/rights/<id>"', '"/rights/<id>", headers = ["Accept-Language"]')
    ask(compositions(tmp_path, text, upstreams), incoming("/pair/7", authorization="Bearer x", **sent))
    by_service = {service: (target, options["headers"]) for service, target, options in upstreams.sent}
    own = {
        "accept": "application/json",
        "accept-encoding": "identity",
        "x-request-id": "r" * 32,
        "traceparent": "00-trace",
    }
    assert by_service["lefts"] == ("/lefts/7", own | {"authorization": "Bearer x"})
    assert by_service["rights"] == ("/rights/7", own | {"authorization": "Bearer x", "accept-language": "de"})
    assert upstreams.sent[0][2]["max_body_bytes"] == 1024 * 1024
    assert upstreams.sent[0][2]["source_key"] == "10.0.0.1"


@pytest.mark.parametrize(
    ("behave", "status", "reason"),
    [
        (answers(b"", 200), "invalid", "empty"),
        (answers(b"<html>", 200), "invalid", "not JSON"),
        (answers(b"[" * 100_000, 200), "invalid", "not JSON"),
        (answers(b"{}", 404), "refused", "404"),
        (answers(b"{}", 500), "failed", "500"),
        (answers(b"", 302), "invalid", "302"),
        (raises(NoInstance("rights")), "unavailable", "no live instance"),
        (raises(BreakerOpen("rights", retry_after_s=4.0)), "unavailable", "too often"),
        (raises(ConnectFailed("rights", "10.1.2.3:80: refused")), "unavailable", "reached"),
        (raises(Overloaded("rights", "upstream")), "unavailable", "overloaded"),
        (raises(ResponseLost("rights", "10.1.2.3:80: lost")), "failed", "no complete answer"),
        (raises(DeadlineExceeded("rights", sent=True)), "timeout", "in time"),
        (raises(ValueError("too long")), "invalid", "longer than 1048576"),
        (raises(RuntimeError("bug at 10.1.2.3")), "failed", "gateway"),
        (answers(after_s=30), "timeout", "in time"),
    ],
)
def test_an_optional_part_that_fails_is_null_with_its_reason(
    tmp_path: Path, behave: Behave, status: str, reason: str
) -> None:
    began = time.monotonic()
    answer = ask(compositions(tmp_path, PAIR, Upstreams({"lefts": answers(), "rights": behave})))
    assert time.monotonic() - began < 1.3 * time_scale()
    told = said(answer)
    assert answer.status == 200
    assert (told["left"], told["right"], told["_complete"]) == ({}, None, False)
    assert told["_parts"]["right"]["status"] == status
    assert reason in told["_parts"]["right"]["reason"]
    assert "10.1.2.3" not in str(told)
    assert answer.header("cache-control") == "no-store"
    assert answer.header("x-incomplete") == "right"


@pytest.mark.parametrize(
    ("behave", "status"),
    [
        (answers(b"{}", 404), 404),
        (answers(b"not json"), 502),
        (answers(b'{"date":1}'), 502),
        (raises(NoInstance("lefts")), 503),
        (raises(ResponseLost("lefts")), 502),
        (answers(after_s=30), 504),
    ],
)
def test_a_needed_part_that_fails_is_an_error(tmp_path: Path, behave: Behave, status: int) -> None:
    began = time.monotonic()
    with pytest.raises(PartFailed) as caught:
        ask(compositions(tmp_path, PAIR, Upstreams({"lefts": behave, "rights": answers(b"1")})))
    assert time.monotonic() - began < 1.3 * time_scale()
    assert caught.value.status == status
    assert caught.value.members["part"] == "left"
    assert caught.value.service == "lefts"


def test_a_needed_part_that_fails_ends_the_waiting_for_the_others(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(b"{}", 404), "rights": answers(b"1", after_s=30)})
    began = time.monotonic()
    with pytest.raises(PartFailed) as caught:
        ask(compositions(tmp_path, PAIR, upstreams))
    assert time.monotonic() - began < 0.5 * time_scale()
    gevent.sleep(0)
    assert upstreams.cut == ["rights"]
    assert caught.value.members["parts"]["right"]["status"] == "cancelled"  # type: ignore[index]


def test_of_two_needed_parts_who_you_are_comes_first(tmp_path: Path) -> None:
    text = PAIR.replace('path = "/rights/<id>"', 'path = "/rights/<id>", required = true')
    upstreams = Upstreams({"lefts": answers(b"{}", 404), "rights": answers(b"{}", 401)})
    with pytest.raises(PartFailed) as caught:
        ask(compositions(tmp_path, text, upstreams))
    assert caught.value.status == 401


def test_a_share_of_the_timeout_is_all_that_a_part_gets(tmp_path: Path) -> None:
    text = PAIR.replace('path = "/rights/<id>"', 'path = "/rights/<id>", share = 0.2')
    upstreams = Upstreams({"lefts": answers(after_s=0.3), "rights": answers(b"1", after_s=30)})
    began = time.monotonic()
    told = said(ask(compositions(tmp_path, text, upstreams)))
    assert 0.3 <= time.monotonic() - began < 0.9
    assert told["_parts"]["right"]["status"] == "timeout"


def test_the_callers_deadline_is_shorter_than_the_routes(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(after_s=30), "rights": answers(b"1")})
    began = time.monotonic()
    with pytest.raises(PartFailed) as caught:
        ask(compositions(tmp_path, PAIR, upstreams), incoming("/pair/7", within_s=0.2))
    assert time.monotonic() - began < 0.9
    assert caught.value.status == 504
    assert all(options["deadline_s"] <= 0.2 for _, _, options in upstreams.sent)


def test_a_caller_who_leaves_takes_the_work_along(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(after_s=30), "rights": answers(b"1", after_s=30)})
    made = compositions(tmp_path, PAIR, upstreams)
    caller = gevent.spawn(ask, made)
    gevent.sleep(0.05)
    caller.kill()
    gevent.sleep(0)
    assert sorted(upstreams.cut) == ["lefts", "rights"]


def test_a_route_for_a_token_needs_one_and_asks_for_its_subject(tmp_path: Path) -> None:
    upstreams = Upstreams({"posts": answers(b"[]", cache_control="public, max-age=60")})
    made = compositions(tmp_path, TOKEN, upstreams)
    for given, challenge in (
        ({}, 'Bearer realm="breakwater"'),
        ({"authorization": "Bearer x"}, "invalid_token"),
    ):
        with pytest.raises(Refused) as caught:
            ask(made, incoming("/mine", **given))
        assert caught.value.status == 401
        assert challenge in dict(caught.value.headers)["WWW-Authenticate"]
    assert upstreams.sent == []
    answer = ask(made, incoming("/mine", who=person("a&limit=9")))
    assert upstreams.sent[0][1] == "/posts?author=a%26limit%3D9"
    assert answer.header("cache-control") == "private, max-age=60"


def test_a_token_that_cannot_be_checked_is_not_called_a_false_one(tmp_path: Path) -> None:
    made = compositions(tmp_path, TOKEN, Upstreams({"posts": answers(b"[]")}))
    request = replace(incoming("/mine", authorization="Bearer x"), unchecked=lambda: True)
    with pytest.raises(Refused) as caught:
        ask(made, request)
    assert caught.value.status == 503


def test_a_subject_that_cannot_stand_in_a_path_is_asked_for_nowhere(tmp_path: Path) -> None:
    upstreams = Upstreams({"posts": answers(b"[]")})
    told = said(ask(compositions(tmp_path, TOKEN, upstreams), incoming("/mine", who=person("a\r\nX: y"))))
    assert told["_parts"]["posts"]["status"] == "invalid"
    assert upstreams.sent == []


def test_a_fixed_path_goes_before_a_placeholder(tmp_path: Path) -> None:
    fixed = (
        PAIR.replace('"pair"', '"fixed"')
        .replace("/pair/<id>", "/pair/own")
        .replace('placeholders = { id = "[0-9a-z]+" }', "")
    )
    fixed = fixed.replace("/<id>", "")
    upstreams = Upstreams({"lefts": answers(), "rights": answers(b"1")})
    made = compositions(tmp_path, PAIR + fixed, upstreams)
    for path, target in (("/pair/own", "/lefts"), ("/pair/other", "/lefts/other")):
        upstreams.sent.clear()
        ask(made, incoming(path))
        assert upstreams.sent[0][1] == target
