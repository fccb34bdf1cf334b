"""analytics: two real instances on one database, which hear from a real Redis what the tests let happen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from redis import Redis

from services.analytics.page import POLICY
from services.kit import Event
from tests.integration.content import World, pair
from tests.integration.identity import problem
from tests.support.databases import Backend
from tests.support.document import Documented
from tests.support.eventually import eventually
from tests.support.instances import RunningInstance, instance
from tests.support.servers import redis
from tests.unit.analytics.telling import Teller, comment, post, post_gone, user, user_gone

TOTALS, SERIES = "/api/analytics/totals", "/api/analytics/series"
NOW = datetime.now(UTC)


@dataclass
class Counting:
    """Both instances, and what tells them."""

    two: list[RunningInstance]
    teller: Teller
    broker: Redis

    def total(self, on: int = 0) -> dict[str, Any]:
        data: dict[str, Any] = self.two[on].get(TOTALS).json()["data"]
        return data

    def settle(self) -> None:
        """Wait until all that was told has been heard."""

        def heard() -> bool:
            groups = [self.broker.xinfo_groups(f"events:{name}") for name in ("auth", "posts", "users")]
            return all(each and each[0]["lag"] == 0 and each[0]["pending"] == 0 for each in groups)

        eventually(heard, 30, every_s=0.1)

    def series(self, kind: str, **params: str) -> dict[str, int]:
        """Start → count, of what has any."""
        answer = self.two[0].call("GET", SERIES, params={"kind": kind, **params})
        assert answer.status_code == 200, answer.text
        return {point["start"]: point["count"] for point in answer.json()["data"]["points"] if point["count"]}


@pytest.fixture(scope="module")
def counting(around: World, backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counting]:
    # A broker of its own: what other tests let happen is not to be counted.
    with redis() as server, Redis.from_url(server.url) as broker:
        there = replace(around, env={**around.env, "EVENTS_URL": server.url})
        teller = Teller(server.url)
        teller.tell(user("first"), user_gone("first"), post("first"), post_gone("first"))
        with pair("analytics", backend, there, tmp_path_factory.mktemp("analytics")) as two:
            made = Counting(two, teller, broker)
            made.settle()
            yield made


def day(ago: int) -> datetime:
    return (NOW - timedelta(days=ago)).replace(hour=12, minute=0, second=0, microsecond=0)


def start(ago: int) -> str:
    return day(ago).strftime("%Y-%m-%dT00:00:00.000000Z")


def test_late_repeated_and_misordered_events_are_counted_once_on_their_own_day(counting: Counting) -> None:
    before = counting.total()
    happened: list[Event] = [user(f"late-{n}", day(n % 3 + 10)) for n in range(30)]
    happened += [user_gone(f"late-{n}", day(5)) for n in range(10)]
    happened += [post(f"late-{n}", day(11), tags=["late"]) for n in range(10)] + [post_gone("late-0", day(4))]
    happened += [comment(f"late-{n % 5}", day(12)) for n in range(20)]
    random.Random(7).shuffle(happened)
    sent = counting.teller.tell(*happened)
    counting.teller.send(sent[::-1])
    counting.settle()
    after = counting.total()
    grown = {name: after[name] - before[name] for name in ("users", "posts", "comments")}
    assert grown == {"users": 20, "posts": 9, "comments": 16}
    assert counting.total(on=1)["users"] == after["users"]
    assert counting.series("user.created", to=start(8)) == {start(n): 10 for n in (10, 11, 12)}
    assert counting.series("comment.created", to=start(8)) == {start(12): 20}
    assert counting.series("post.deleted", to=start(3)) == {start(4): 1}
    tags = counting.two[0].get("/api/analytics/tags").json()["data"]
    assert {"tag": "late", "count": 9} in tags


def test_no_event_is_lost_or_counted_twice_when_instances_are_killed(counting: Counting) -> None:
    before = counting.total()["users"]
    for number in range(3):
        counting.teller.tell(*(user(f"kill-{number}-{n}", day(45)) for n in range(100)))
        victim = counting.two[number % 2]
        victim.kill()
        victim.start()
    counting.settle()
    assert counting.total()["users"] - before == 300
    assert counting.series("user.created", to=start(44)) == {start(45): 300}


def test_days_are_for_all_and_the_rest_for_administrators(counting: Counting, around: World) -> None:
    one = counting.two[0]
    counting.teller.tell(user("now", NOW))
    counting.settle()
    public = one.call("GET", SERIES, params={"kind": "user.created"})
    assert public.headers["Cache-Control"] == "public, max-age=5, s-maxage=5"
    for by in ("hour", "minute"):
        asked = {"kind": "user.created", "by": by}
        problem(one.call("GET", SERIES, params=asked), 401)
        problem(one.call("GET", SERIES, params=asked, token=around.user("u")), 403)
        answer = one.call("GET", SERIES, params=asked, token=around.admin())
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert answer.json()["data"]["total"] >= 1
    problem(one.call("GET", "/api/analytics/details"), 401)
    problem(one.call("GET", "/api/analytics/details", token=around.user("u")), 403)
    details = one.call("GET", "/api/analytics/details", token=around.admin()).json()["data"]
    heard = {each["kind"]: each for each in details["events"]}
    assert heard["user.created"]["lastEventAt"] == NOW.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert heard["user.created"]["delayS"] >= 0


def test_answers_are_as_the_document_says(counting: Counting, around: World) -> None:
    ask = Documented(counting.two[0])
    ask("GET", TOTALS)
    ask("GET", SERIES, params={"kind": "post.published"})
    ask("GET", "/api/analytics/tags", params={"limit": 1})
    ask("GET", "/api/analytics/details", token=around.admin())
    assert "text/html" in ask.document["paths"]["/api/analytics/page"]["get"]["responses"]["200"]["content"]


def test_pages_of_tags_lead_through_all_of_them(counting: Counting) -> None:
    counting.teller.tell(post("tagged", tags=[f"page-{n}" for n in range(5)]))
    counting.settle()
    found, cursor = [], None
    while True:
        params = {"limit": "2", **({"cursor": cursor} if cursor else {})}
        body = counting.two[0].call("GET", "/api/analytics/tags", params=params).json()
        found += [each["tag"] for each in body["data"]]
        cursor = body["page"]["nextCursor"]
        if cursor is None:
            break
    assert len(found) == len(set(found))
    assert {f"page-{n}" for n in range(5)} <= set(found)


@pytest.mark.parametrize(
    "query",
    [
        "", "kind=", "kind=x", "kind=user.created&by=week", "kind=user.created&from=-1", "kind=user.created&from=%00",
        "kind=user.created&to=1999-01-01", "kind=user.created&to=9999-12-31", "kind=user.created&from=2026-03-02&to=2026-03-01",
        "kind=user.created&from=2000-01-01", "kind=user.created&from=2026-03-01T00:00:00+02:00", "kind=%ed%a0%80", "kind=%ff",
        "kind=user.created&to=2026-03-01T00:00:00Europe/Paris", "kind=user.created&from=" + "9" * 2000,
    ],
)  # fmt: skip
def test_question_without_an_answer_is_a_problem(counting: Counting, query: str) -> None:
    body = problem(counting.two[0].call("GET", f"{SERIES}?{query}"), 422)
    assert body.get("detail")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "cursor=x", "limit=-1", "limit=NaN", "cursor=%00"])
def test_page_that_is_none_is_a_problem(counting: Counting, query: str) -> None:
    answer = counting.two[0].call("GET", f"/api/analytics/tags?{query}")
    problem(answer, 400 if query.startswith("cursor") else 422)


def test_page_shows_what_was_counted_and_no_script_of_others(counting: Counting) -> None:
    hostile = "<script>alert(1)</script>"
    for number in range(30):
        counting.teller.tell(post(f"hostile-{number}", tags=[hostile]))
    counting.settle()
    answer: requests.Response = counting.two[1].get("/api/analytics/page")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"] == POLICY
    assert answer.headers["Cache-Control"] == "public, max-age=5, s-maxage=5"
    assert "&lt;script&gt;alert(1)" in answer.text
    assert "<script" not in answer.text
    assert answer.text.count("<svg") == 3


def test_time_that_cannot_be_believed_is_counted_apart(counting: Counting, around: World) -> None:
    one = counting.two[0]

    def apart() -> int:
        events = one.call("GET", "/api/analytics/details", token=around.admin()).json()["data"]["events"]
        return sum(each["withoutBucket"] for each in events if each["kind"] == "user.created")

    before, users = apart(), counting.total()["users"]
    for number, when in enumerate((datetime.min, datetime.max, NOW + timedelta(days=2))):
        counting.teller.tell(user(f"odd-{number}", when.replace(tzinfo=UTC)))
    counting.settle()
    assert (apart() - before, counting.total()["users"] - users) == (3, 3)


def test_answers_need_no_broker(around: World, tmp_path: Path) -> None:
    with instance("analytics", tmp_path, {**around.env, "EVENTS_URL": "redis://127.0.0.1:1"}) as one:
        found = one.get(TOTALS).json()["data"]
    assert (found["users"], found["lastEventAt"], found["delayS"]) == (0, None, None)
