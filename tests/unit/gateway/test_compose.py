"""A composition at work: parts side by side, one deadline, and what is told when they fail. Upstreams are functions here;
tests/integration/test_gateway_compose.py has real ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import pytest

from discovery import (
    BreakerOpen,
    ConnectFailed,
    DeadlineExceeded,
    Instance,
    NoInstance,
    ResponseLost,
    StaticView,
)
from gateway.cache import Part, PartPolicy
from gateway.compose import Compositions
from gateway.compose.declaration import load
from gateway.errors import Overloaded, PartFailed, Refused
from gateway.model import Answer, Incoming
from services.kit.auth import Identity

U = "a1" * 16
PAIR = """
[[route]]
name = "pair"
path = "/pair/<id>"
placeholders = { id = "[0-9a-z]+" }
timeout_s = 1.0
parts.left = { service = "lefts", path = "/lefts/<id>", required = true, take = "data" }
parts.right = { service = "rights", path = "/rights/<id>" }
"""


@dataclass
class Reply:
    """What an upstream's answer looks like to its caller."""

    body: bytes = b'{"data":{}}'
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    instance: Instance = field(default_factory=lambda: one("lefts"))
    attempts: int = 1

    @property
    def data(self) -> bytes:
        return self.body


def one(service: str, number: int = 1) -> Instance:
    return Instance(service, f"{service}-{number}", "node", "127.0.0.1", 1000 + number)


Behave = Callable[[dict[str, Any]], Reply]


@dataclass
class Upstreams:
    """`Calls` whose services are functions. `sent` is what was asked of whom, `cut` whose call was cut off."""

    behave: dict[str, Behave]
    p95_s: float | None = None
    budget: int = 1000
    sent: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    @property
    def client(self) -> Upstreams:
        return self

    def latency_s(self, service: str) -> float | None:
        return self.p95_s

    def spend_retry(self, service: str) -> bool:
        self.budget -= 1
        return self.budget >= 0

    def send(self, incoming: Any, method: str, service: str, target: str, **options: Any) -> Any:
        self.sent.append((service, target, options))
        try:
            return self.behave[service](options)
        except Exception:
            raise
        except BaseException:
            self.cut.append(service)
            raise


def answers(body: bytes = b'{"data":{}}', status: int = 200, after_s: float = 0.0, **headers: str) -> Behave:
    def behave(_: dict[str, Any]) -> Reply:
        gevent.sleep(after_s)
        return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})

    return behave


def raises(error: Exception, after_s: float = 0.0) -> Behave:
    def behave(_: dict[str, Any]) -> Reply:
        gevent.sleep(after_s)
        raise error

    return behave


def compositions(
    folder: Path, text: str, upstreams: Upstreams, *, cache: Any = None, there: list[Instance] | None = None
) -> Compositions:
    (folder / "business.toml").write_text(text)
    names = list(upstreams.behave)
    view = StaticView(there if there is not None else [one(name) for name in names])
    return Compositions(load("business", folder), calls=upstreams, view=view, cache=cache)  # type: ignore[arg-type]


def incoming(
    path: str = "/pair/7",
    method: str = "GET",
    within_s: float = 10.0,
    subject: str | None = None,
    **headers: str,
) -> Incoming:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    identity = Identity(subject, frozenset({"user"}), 2e9) if subject else None
    return Incoming(
        method, path, "", sent, "gateway-business", "business", "10.0.0.9", "r" * 32, "00-trace",
        time.monotonic() + within_s, identify=lambda: identity,
    )  # fmt: skip


def ask(made: Compositions, request: Incoming | None = None) -> Answer:
    request = request or incoming()
    found = made.find(request)
    assert found is not None
    return found.answer(request)


def said(answer: Answer) -> dict[str, Any]:
    assert isinstance(answer.body, bytes)
    parsed: dict[str, Any] = json.loads(answer.body)
    return parsed


def test_parts_are_fetched_at_once(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(after_s=0.2), "rights": answers(b"1", after_s=0.2)})
    began = time.monotonic()
    answer = ask(compositions(tmp_path, PAIR, upstreams))
    assert time.monotonic() - began < 0.35
    assert said(answer)["_complete"] is True
    assert (said(answer)["left"], said(answer)["right"]) == ({}, 1)


def test_a_part_is_asked_with_the_callers_token_and_nothing_else_of_his(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(), "rights": answers(b"1")})
    request = incoming(
        authorization="Bearer x", cookie="c", x_auth_subject="root", accept_language="de", if_none_match="*"
    )
    ask(
        compositions(
            tmp_path,
            PAIR.replace('"/rights/<id>"', '"/rights/<id>", headers = ["Accept-Language"]'),
            upstreams,
        ),
        request,
    )
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
    assert upstreams.sent[0][2]["source_key"] == "10.0.0.9"


@pytest.mark.parametrize(
    ("behave", "status", "reason"),
    [
        (answers(b"", 200), "invalid", "empty"),
        (answers(b"<html>", 200), "invalid", "not JSON"),
        (answers(b"[" * 100_000, 200), "invalid", "not JSON"),
        (answers(b"{}", 404), "refused", "404"),
        (answers(b"{}", 500), "failed", "500"),
        (answers(b"", 302), "invalid", "302"),
        (raises(NoInstance("rights")), "unavailable", "no instance"),
        (raises(BreakerOpen("rights", retry_after_s=4.0)), "unavailable", "breaker"),
        (raises(ConnectFailed("rights", "10.1.2.3:80: refused")), "unavailable", "reached"),
        (raises(Overloaded("rights", "upstream")), "unavailable", "too much"),
        (raises(ResponseLost("rights", "10.1.2.3:80: lost")), "failed", "broke off"),
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
    assert time.monotonic() - began < 1.3
    told = said(answer)
    assert answer.status == 200
    assert (told["left"], told["right"], told["_complete"]) == ({}, None, False)
    assert told["_parts"]["right"]["status"] == status
    assert reason in told["_parts"]["right"]["reason"]
    assert "10.1.2.3" not in str(told)
    assert answer.header("cache-control") == "no-store"
    assert answer.header("x-incomplete") == "right"


def test_a_service_that_is_not_there_is_a_part_that_says_so(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(), "rights": raises(NoInstance("rights"))})
    told = said(ask(compositions(tmp_path, PAIR, upstreams, there=[one("lefts")])))
    assert told["_parts"]["right"]["status"] == "absent"


@pytest.mark.parametrize(
    ("behave", "status"),
    [
        (answers(b"{}", 401, www_authenticate="Bearer"), 401),
        (answers(b"{}", 403), 403),
        (answers(b"{}", 404), 404),
        (answers(b"{}", 422), 502),
        (answers(b"{}", 500), 502),
        (answers(b"{}", 503, retry_after="9"), 503),
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
    assert time.monotonic() - began < 1.3
    assert caught.value.status == status
    assert caught.value.members["part"] == "left"
    assert caught.value.service == "lefts"


def test_a_needed_part_that_fails_ends_the_waiting_for_the_others(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(b"{}", 404), "rights": answers(b"1", after_s=30)})
    began = time.monotonic()
    with pytest.raises(PartFailed) as caught:
        ask(compositions(tmp_path, PAIR, upstreams))
    assert time.monotonic() - began < 0.5
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
    assert 0.3 <= time.monotonic() - began < 0.6
    assert told["_parts"]["right"]["status"] == "timeout"


def test_the_callers_deadline_is_shorter_than_the_routes(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(after_s=30), "rights": answers(b"1")})
    began = time.monotonic()
    with pytest.raises(PartFailed) as caught:
        ask(compositions(tmp_path, PAIR, upstreams), incoming(within_s=0.2))
    assert time.monotonic() - began < 0.5
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


def test_other_methods_are_refused(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(), "rights": answers(b"1")})
    made = compositions(tmp_path, PAIR, upstreams)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PURGE"):
        with pytest.raises(Refused) as caught:
            ask(made, incoming(method=method))
        assert (caught.value.status, caught.value.headers) == (405, [("Allow", "GET, HEAD")])
    assert upstreams.sent == []


def test_head_has_the_headers_of_get_and_no_body(tmp_path: Path) -> None:
    made = compositions(tmp_path, PAIR, Upstreams({"lefts": answers(), "rights": answers(b"1")}))
    get, head = ask(made), ask(made, incoming(method="HEAD"))
    assert (head.status, head.body) == (200, b"")
    assert head.header("etag") == get.header("etag")
    assert head.header("content-length") == str(len(bytes(get.body)))  # type: ignore[arg-type]


TOKEN = """
[[route]]
name = "mine"
path = "/mine"
auth = "token"
parts.posts = { service = "posts", path = "/posts?author=<subject>" }
"""


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
    answer = ask(made, incoming("/mine", subject="a&limit=9", authorization="Bearer x"))
    assert upstreams.sent[0][1] == "/posts?author=a%26limit%3D9"
    assert answer.header("cache-control") == "private, max-age=60"


def test_a_subject_that_cannot_stand_in_a_path_is_asked_for_nowhere(tmp_path: Path) -> None:
    upstreams = Upstreams({"posts": answers(b"[]")})
    told = said(ask(compositions(tmp_path, TOKEN, upstreams), incoming("/mine", subject="a\r\nX: y")))
    assert told["_parts"]["posts"]["status"] == "invalid"
    assert upstreams.sent == []


@dataclass
class Store:
    """A cache that holds what a test puts in."""

    kept: Part | None = None
    good: Answer | None = None
    asked: list[tuple[str, str, PartPolicy, Identity | None]] = field(default_factory=list)

    def part(
        self, service: str, target: str, policy: PartPolicy, load: Any, *, identity: Identity | None = None
    ) -> Part:
        self.asked.append((service, target, policy, identity))
        return self.kept or Part(load(), "MISS")

    def mark(self) -> int:
        return 0

    def unchanged(self, places: Any, since: int, checked: float) -> bool:
        return True

    def last_good(self, incoming: Incoming) -> Answer | None:
        self.asked.append((incoming.service, incoming.target, PartPolicy(0), incoming.identify()))
        return self.good


def test_the_last_good_answer_stands_in_for_a_part(tmp_path: Path) -> None:
    text = PAIR.replace("required = true", 'required = true, fallback = "last-good"')
    store = Store(good=Answer(200, [("X-Stale-Age", "12")], b'{"data":{"old":1}}', source="snapshot"))
    upstreams = Upstreams({"lefts": raises(ConnectFailed("lefts", attempts=3)), "rights": answers(b"1")})
    answer = ask(compositions(tmp_path, text, upstreams, cache=store), incoming(subject=U))
    told = said(answer)
    assert told["left"] == {"old": 1}
    assert told["_parts"]["left"] == {
        "status": "stale",
        "source": "snapshot",
        "age": 12,
        "attempts": 3,
        "reason": "no instance could be reached",
    }
    assert told["_complete"] is True
    assert answer.header("x-stale-age") == "12"
    assert answer.header("cache-control") == "no-store"
    assert store.asked == [("lefts", "/lefts/7", PartPolicy(0), Identity(U, frozenset({"user"}), 2e9))]


def test_there_is_time_left_for_what_stands_in_for_a_part_that_hangs(tmp_path: Path) -> None:
    text = PAIR.replace("required = true", 'required = true, fallback = "last-good"')
    store = Store(good=Answer(200, [], b'{"data":{"old":1}}', source="snapshot"))
    upstreams = Upstreams({"lefts": answers(after_s=30), "rights": answers(b"1")})
    began = time.monotonic()
    told = said(ask(compositions(tmp_path, text, upstreams, cache=store)))
    assert time.monotonic() - began < 1.1
    assert (told["left"], told["_parts"]["left"]["reason"]) == ({"old": 1}, "no answer in time")


@pytest.mark.parametrize("behave", [answers(b"{}", 403), answers(b"{}", 404), answers(b"{}", 401)])
def test_nothing_stands_in_for_a_refusal(tmp_path: Path, behave: Behave) -> None:
    text = PAIR.replace("required = true", 'required = true, fallback = "last-good"')
    store = Store(good=Answer(200, [], b'{"data":{"old":1}}', source="snapshot"))
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


def test_what_is_kept_for_all_is_asked_for_without_a_token(tmp_path: Path) -> None:
    upstreams, store = Upstreams({"lefts": answers(), "rights": answers(b"1")}), Store()
    ask(
        compositions(tmp_path, kept_as("public"), upstreams, cache=store),
        incoming(authorization="Bearer x", subject=U),
    )
    sent = {service: options["headers"] for service, _, options in upstreams.sent}
    assert "authorization" not in sent["lefts"]
    assert "authorization" in sent["rights"]
    assert store.asked == [("lefts", "/lefts/7", PartPolicy(5.0), None)]


def test_what_is_kept_for_one_is_kept_for_whose_token_it_is(tmp_path: Path) -> None:
    upstreams, store = Upstreams({"lefts": answers(), "rights": answers(b"1")}), Store()
    ask(
        compositions(tmp_path, kept_as("subject"), upstreams, cache=store),
        incoming(authorization="Bearer x", subject=U),
    )
    assert upstreams.sent[0][2]["headers"]["authorization"] == "Bearer x"
    assert store.asked[0][3] == Identity(U, frozenset({"user"}), 2e9)


def test_a_part_out_of_the_cache_says_so(tmp_path: Path) -> None:
    body = Answer(
        200, [("Cache-Control", "public, max-age=60")], b'{"data":{}}', source="lefts-1", attempts=1
    )
    store = Store(kept=Part(body, "HIT", age_s=4.2))
    upstreams = Upstreams({"lefts": answers(), "rights": answers(b"1", cache_control="public, max-age=60")})
    answer = ask(compositions(tmp_path, kept_as("public"), upstreams, cache=store))
    assert said(answer)["_parts"]["left"] == {"status": "ok", "source": "cache", "age": 4, "attempts": 0}
    assert answer.header("x-cache") == "HIT"
    assert answer.header("cache-control") == "public, max-age=56"


def test_what_is_of_no_use_is_never_kept(tmp_path: Path) -> None:
    """A 200 that is no JSON must not fill the cache for as long as a good one would."""
    raised: list[BaseException] = []

    class Watching(Store):
        def part(
            self,
            service: str,
            target: str,
            policy: PartPolicy,
            load: Any,
            *,
            identity: Identity | None = None,
        ) -> Part:
            try:
                return Part(load(), "MISS")
            except Exception as error:
                raised.append(error)
                raise

    upstreams = Upstreams({"lefts": answers(b"<html>"), "rights": answers(b"1")})
    with pytest.raises(PartFailed):
        ask(compositions(tmp_path, kept_as("public"), upstreams, cache=Watching()))
    assert len(raised) == 1


PUBLIC = {"cache_control": "public, max-age=60"}


def test_a_whole_that_is_public_is_made_once(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": answers(**PUBLIC), "rights": answers(b"[1]", **PUBLIC)})
    made = compositions(tmp_path, PAIR, upstreams)
    first, second = ask(made), ask(made, incoming(authorization="Bearer x"))
    assert len(upstreams.sent) == 2
    assert (first.header("x-cache"), second.header("x-cache")) == ("MISS", "HIT")
    assert (said(second)["left"], said(second)["right"]) == ({}, [1])
    assert said(second)["_parts"]["left"] == {"status": "ok", "source": "cache", "age": 0, "attempts": 0}
    assert second.header("etag") == first.header("etag")
    assert ask(made, incoming(if_none_match=first.header("etag") or "")).status == 304
    assert ask(made, incoming(method="HEAD")).body == b""
    assert ask(made, incoming("/pair/8")).header("x-cache") == "MISS"


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


def test_a_whole_that_needs_a_token_is_nobody_elses(tmp_path: Path) -> None:
    upstreams = Upstreams({"posts": answers(b"[]", **PUBLIC)})
    made = compositions(tmp_path, TOKEN, upstreams)
    for subject in ("a", "b", "b"):
        ask(made, incoming("/mine", subject=subject))
    assert [target for _, target, _ in upstreams.sent] == [
        "/posts?author=a",
        "/posts?author=b",
        "/posts?author=b",
    ]


def test_a_whole_is_kept_apart_by_what_was_passed_on(tmp_path: Path) -> None:
    text = PAIR.replace('"/rights/<id>"', '"/rights/<id>", headers = ["Accept-Language"]')
    upstreams = Upstreams(
        {"lefts": answers(**PUBLIC), "rights": answers(b"1", vary="Accept-Language", **PUBLIC)}
    )
    made = compositions(tmp_path, text, upstreams)
    told = [ask(made, incoming(accept_language=each)).header("x-cache") for each in ("de", "fr", "de")]
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
            options["tried"].add("first's place")
            gevent.sleep(after_s)
        assert options["avoid"] is options["tried"]
        assert len(calls) == 1 or "first's place" in options["avoid"]
        return Reply(attempts=1)

    return behave


def test_a_slow_part_is_hedged_on_another_instance(tmp_path: Path) -> None:
    upstreams = Upstreams({"lefts": slow_first(30), "rights": answers(b"1")}, p95_s=0.02)
    began = time.monotonic()
    told = said(ask(hedging(upstreams, tmp_path)))
    assert time.monotonic() - began < 0.5
    assert told["_parts"]["left"]["attempts"] == 2
    gevent.sleep(0)
    assert upstreams.cut == ["lefts"]
    assert upstreams.budget == 999


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


def test_a_path_that_nobody_composes_is_not_found_here(tmp_path: Path) -> None:
    made = compositions(tmp_path, PAIR + TOKEN, Upstreams({"lefts": answers()}))
    for path in ("/pair", "/pair/", "/pair/7/8", "/pair/A", "/mine/", "/mine/x", "/", "/pair/%2e%2e"):
        assert made.find(incoming(path)) is None


def test_a_fixed_path_goes_before_a_placeholder(tmp_path: Path) -> None:
    fixed = (
        PAIR.replace('"pair"', '"fixed"')
        .replace("/pair/<id>", "/pair/own")
        .replace('placeholders = { id = "[0-9a-z]+" }', "")
    )
    fixed = fixed.replace("/<id>", "")
    made = compositions(tmp_path, PAIR + fixed, Upstreams({"lefts": answers(), "rights": answers(b"1")}))
    assert made.find(incoming("/pair/own")).composition.route.name == "fixed"  # type: ignore[union-attr]
    assert made.find(incoming("/pair/other")).composition.route.name == "pair"  # type: ignore[union-attr]
