"""What an event does to its user or post, which bucket it has, and which ranges have an answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from services.analytics.domain import (
    AHEAD_S,
    EARLIEST_S,
    HEARD,
    MAX_POINTS,
    BadRange,
    SeriesQuery,
    Thing,
    change,
    has_place,
    kind_of,
    start_of,
    to_us,
    worth,
)
from services.kit.events.event import Event
from tests.unit.analytics.telling import DAY, at, comment, comment_gone, post, post_gone, user, user_gone

NOW_US = to_us(datetime(2026, 3, 10, 12, 30, 15, tzinfo=UTC))


def after(*events: Event) -> Thing:
    thing = Thing()
    for event in events:
        thing = change(thing, event)
    return thing


def test_kinds_of_the_question_are_those_that_are_heard() -> None:
    kinds = [kind_of(event) for event in (user("u"), user_gone("u"), post("p"), post_gone("p"))]
    kinds += [kind_of(comment("p")), kind_of(comment_gone("p"))]
    assert [SeriesQuery.model_validate({"kind": kind}).kind for kind in kinds] == [
        each.TYPE.removesuffix(".v1") for each in HEARD
    ]


def test_post_is_worth_itself_its_author_tags_and_comments() -> None:
    thing = after(post("p", tags=["b", "a", "b"]), comment("p"), comment("p"))
    expected = {("total", "posts"): 1, ("author", "ada"): 1, ("tag", "a"): 1, ("tag", "b"): 1}
    assert worth("post", thing) == {**expected, ("total", "comments"): 2}


def test_post_that_is_gone_takes_its_comments_along_whatever_comes_later() -> None:
    for events in (
        (post("p"), comment("p"), post_gone("p")),
        (post_gone("p"), post("p"), comment("p")),
        (comment("p"), post_gone("p"), post("p")),
    ):
        assert worth("post", after(*events)) == {}


def test_comment_takes_its_replies_along() -> None:
    thing = after(*[comment("p")] * 4, comment_gone("p", replies=2))
    assert worth("post", thing) == {("total", "comments"): 1}


def test_nothing_is_worth_less_than_nothing() -> None:
    assert worth("post", after(comment_gone("p"), comment_gone("p", replies=-5))) == {}
    assert worth("user", after(user_gone("u"), user("u"))) == {}


def test_tags_and_author_that_no_table_takes_are_left_out() -> None:
    thing = after(post("p", author="\0", tags=["", "x" * 200, "a\0b", "\ud800", "ok"]))
    assert worth("post", thing) == {("total", "posts"): 1, ("tag", "ok"): 1}


def test_what_is_published_again_counts_once_with_its_newest_tags() -> None:
    for events in (
        (post("p", at(1), tags=["old"]), post("p", at(2), tags=["new"])),
        (post("p", at(2), tags=["new"]), post("p", at(1), tags=["old"])),
    ):
        assert worth("post", after(*events))["tag", "new"] == 1
        assert ("tag", "old") not in worth("post", after(*events))


def test_times_of_every_zone_have_the_bucket_of_their_moment() -> None:
    there = timezone(timedelta(hours=13, minutes=45))
    moment = to_us(datetime(2026, 3, 2, 1, 0, 59, 999_999, tzinfo=there))
    assert moment == to_us(datetime(2026, 3, 1, 11, 15, 59, 999_999, tzinfo=UTC))
    assert moment == to_us(datetime(2026, 3, 1, 11, 15, 59, 999_999)), "without a zone it is UTC"  # noqa: DTZ001
    first = to_us(DAY) // 10**6
    assert [start_of(moment, by) for by in ("minute", "hour", "day")] == [
        first + 11 * 3600 + 15 * 60,
        first + 11 * 3600,
        first,
    ]


@pytest.mark.parametrize(
    ("at_us", "placed"),
    [
        (NOW_US, True),
        (NOW_US + AHEAD_S * 10**6, True),
        (NOW_US + AHEAD_S * 10**6 + 1, False),
        (EARLIEST_S * 10**6, True),
        (EARLIEST_S * 10**6 - 1, False),
        (to_us(datetime.min.replace(tzinfo=UTC)), False),
        (to_us(datetime.max.replace(tzinfo=UTC)), False),
    ],
)
def test_times_before_2000_and_far_ahead_have_no_bucket(at_us: int, placed: bool) -> None:
    assert has_place(at_us, NOW_US) is placed


def starts(by: str, **between: str) -> list[str]:
    query = SeriesQuery.model_validate({"kind": "user.created", "by": by, **between})
    return [f"{datetime.fromtimestamp(start, UTC):%m-%dT%H:%M}" for start in query.starts(NOW_US)]


def test_series_end_now_unless_they_are_asked_otherwise() -> None:
    assert starts("minute")[-1] == "03-10T12:30"
    assert [len(starts(by)) for by in ("minute", "hour", "day")] == [60, 48, 30]
    assert starts("hour", to="2026-03-05")[-1] == "03-04T23:00"


def test_range_holds_every_bucket_that_it_touches() -> None:
    assert starts("day", **{"from": "2026-03-01T23:59:59Z", "to": "2026-03-02T00:00:01Z"}) == [
        "03-01T00:00",
        "03-02T00:00",
    ]
    assert starts("day", **{"from": "2026-03-01", "to": "2026-03-02"}) == ["03-01T00:00"]
    assert starts("hour", **{"from": "2026-03-01T00:30:00+05:30", "to": "2026-02-28T20:00:00z"}) == [
        "02-28T19:00"
    ]


@pytest.mark.parametrize(
    ("by", "since", "until", "why"),
    [
        ("day", "2026-03-02", "2026-03-01", "not before"),
        ("day", "2026-03-02", "2026-03-02", "not before"),
        ("day", "1999-12-31", "2026-03-01", "before 2000"),
        ("day", "0001-01-01", "9999-12-31", "before 2000"),
        ("day", "2026-03-01", "2026-03-12", "ahead"),
        ("day", "2026-03-01", "9999-12-31T23:59:59-23:59", "ahead"),
        ("day", "2000-01-01", "2026-03-01", f"at most {MAX_POINTS}"),
        ("minute", "2026-03-10", "2026-03-11", f"at most {MAX_POINTS}"),
        ("minute", "2026-03-03T12:00:00Z", "2026-03-03T12:30:00Z", "7 days"),
    ],
)
def test_range_without_an_answer_says_why(by: str, since: str, until: str, why: str) -> None:
    with pytest.raises(BadRange, match=why):
        starts(by, **{"from": since, "to": until})


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "-1", "0", "1e9", "1700000000", "2026-03-01T00:00:00", "2026-13-01", "2026-02-30", "2026-W10-1",
        "20260301", "0000-01-01", "2026-03-01T24:01:00Z", "2026-03-01T00:00:00+99:00", "2026-03-01T00:00:00 02:00",
        "2026-03-01T00:00:00Europe/Paris", "２０２６-03-01", "2026-03-01\n", "2026-03-01\0", "\ud800", "x" * 10_000,
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["from", "to"])
def test_what_is_no_time_is_refused(name: str, text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SeriesQuery.model_validate({"kind": "user.created", name: text})
    assert [error["loc"] for error in caught.value.errors()] == [(name,)]


@pytest.mark.parametrize("wrong", [{"kind": "user.created.v1"}, {"kind": ""}, {"by": "week"}, {"by": "Day"}])
def test_unknown_kinds_and_steps_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        SeriesQuery.model_validate({"kind": "user.created", **wrong})
