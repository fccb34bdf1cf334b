"""Counts on a real database of either kind, as the migrations make it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from services.analytics import store
from services.analytics.domain import SeriesQuery, to_us
from services.kit.db.session import Database
from services.kit.events.event import Event
from tests.unit.analytics.telling import DAY, at, comment, comment_gone, post, post_gone, user, user_gone

NOW_US = to_us(DAY + timedelta(days=2))


def count(db: Database, *events: Event, now_us: int = NOW_US) -> None:
    for event in events:
        with db.session() as session:
            store.count(session, event, now_us)


def totals(db: Database) -> tuple[int, ...]:
    with db.session(read_only=True) as session:
        return tuple(store.read_totals(session).values())


def series(db: Database, by: str, kind: str = "user.created") -> list[tuple[int, int]]:
    """(minutes since the day began, count), of what has any."""
    query = SeriesQuery.model_validate({"kind": kind, "by": by})
    with db.session(read_only=True) as session:
        found = store.read_series(session, query.kind, query.by, range(0, 2**40, 60))
    return [((start - to_us(DAY) // 10**6) // 60, number) for start, number in sorted(found.items())]


def test_events_are_counted_in_their_minute_hour_and_day(db: Database) -> None:
    count(db, user("a", at(61)), user("b", at(3)), user("c", at(61.9)), user("d", at(1440)))
    assert series(db, "minute") == [(3, 1), (61, 2), (1440, 1)]
    assert series(db, "hour") == [(0, 1), (60, 2), (1440, 1)]
    assert series(db, "day") == [(0, 3), (1440, 1)]


def test_time_that_cannot_be_believed_is_in_the_totals_and_in_no_bucket(db: Database) -> None:
    count(db, user("a", at(-20_000_000)), user("b", at(10 * 1440)), user("c"))
    assert totals(db) == (3, 0, 0)
    assert series(db, "day") == [(0, 1)]
    with db.session(read_only=True) as session:
        (one,) = store.list_hearings(session)
    assert (one.count, one.displaced, one.last_us) == (3, 2, to_us(DAY))


def test_totals_are_what_is_there(db: Database) -> None:
    count(db, user("a"), user("b"), user("a"), post("p"), post("q"), *[comment("p")] * 3, comment("q"))
    assert totals(db) == (2, 2, 4)
    count(db, comment_gone("p", replies=1), user_gone("b"), post_gone("q"), post_gone("never"))
    assert totals(db) == (1, 1, 1)
    count(db, post_gone("p"), post_gone("p"), comment("p"), user_gone("a"), user_gone("never"))
    assert totals(db) == (0, 0, 0)


def test_tags_follow_their_posts_and_pages_are_whole(db: Database) -> None:
    count(db, *(post(f"p{n}", tags=["all", f"t{n % 3}", "é", "<b>"]) for n in range(7)), post_gone("p0"))
    with db.session(read_only=True) as session:
        whole = [(tag.tag, tag.count) for tag in store.list_tags(session, 100)]
        after, paged = None, []
        while page := store.list_tags(session, 2, after):
            paged += [(tag.tag, tag.count) for tag in page]
            after = (page[-1].count, page[-1].tag)
        authors = store.list_authors(session, 5)
    assert paged == whole
    assert sorted(whole) == sorted({"all": 6, "t0": 2, "t1": 2, "t2": 2, "é": 6, "<b>": 6}.items())
    assert [number for _, number in whole] == [6, 6, 6, 2, 2, 2]
    assert authors == [("ada", 6)]


def test_minutes_are_forgotten_after_a_week_and_nothing_else_is(db: Database) -> None:
    count(db, user("a", at(0)), user("b", at(1)), post("p", tags=["gone"]), post_gone("p"))
    later = to_us(at(0.5)) + 7 * 86_400 * 10**6
    with db.session() as session:
        store.forget_old(session, later)
        assert store.list_tags(session, 5) == []
    assert series(db, "minute") == [(1, 1)]
    assert series(db, "hour") == series(db, "day") == [(0, 2)]
    assert totals(db) == (2, 0, 0)
    count(db, post("q", tags=["gone"]))
    with db.session() as session:
        assert [tag.count for tag in store.list_tags(session, 5)] == [1]


def test_events_of_one_thing_at_the_same_moment_are_all_counted(db: Database) -> None:
    """As of two producers, whose events two instances hear."""
    events: list[Event] = []
    for number in range(20):
        events += [user(f"u{number}"), user_gone(f"u{number}"), comment("p"), comment("p")]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda event: count(db, event), events))
    assert totals(db) == (0, 0, 40)
    assert series(db, "day") == [(0, 20)]
