"""Counts in the database. Every function works inside the session of its caller."""

from __future__ import annotations

import json
from dataclasses import asdict

from sqlalchemy import BigInteger, Boolean, Index, String, Text, and_, bindparam, delete, or_, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from services.analytics.domain import (
    MINUTES_KEPT_S,
    STEP_S,
    Hearing,
    Tag,
    Thing,
    change,
    difference,
    happened_us,
    has_place,
    kind_of,
    start_of,
    thing_of,
    worth,
)
from services.kit.db.portable import write
from services.kit.events.event import Event


class Base(DeclarativeBase):
    pass


class ThingRow(Base):
    """What is known of each user and post; of one that is gone only that."""

    __tablename__ = "things"
    what: Mapped[str] = mapped_column(String(8), primary_key=True)
    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    born_us: Mapped[int] = mapped_column(BigInteger)
    author: Mapped[str] = mapped_column(String(128))
    tags: Mapped[str] = mapped_column(Text)
    comments: Mapped[int] = mapped_column(BigInteger)
    gone: Mapped[bool] = mapped_column(Boolean)


class TallyRow(Base):
    """What all things are worth together."""

    __tablename__ = "tallies"
    __table_args__ = (Index("tallies_value", "sort", "value", "name"),)
    sort: Mapped[str] = mapped_column(String(8), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class CountRow(Base):
    """How many events of a kind happened in a minute, an hour, a day."""

    __tablename__ = "counts"
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    step: Mapped[str] = mapped_column(String(8), primary_key=True)
    start_s: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)


class HearingRow(Base):
    __tablename__ = "hearings"
    kind: Mapped[str] = mapped_column(String(32), primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger)
    displaced: Mapped[int] = mapped_column(BigInteger)
    last_us: Mapped[int] = mapped_column(BigInteger)
    heard_us: Mapped[int] = mapped_column(BigInteger)
    delay_us: Mapped[int] = mapped_column(BigInteger)


# Made once: to make a statement costs more than to run it.
_HOLD = (
    select(ThingRow.born_us, ThingRow.author, ThingRow.tags, ThingRow.comments, ThingRow.gone)
    .where(ThingRow.what == bindparam("what"), ThingRow.id == bindparam("id"))
    .with_for_update()
)
_MAKE = text(
    "INSERT INTO things (what, id, born_us, author, tags, comments, gone) "
    "VALUES (:what, :id, :born_us, :author, :tags, :comments, :gone) ON CONFLICT (what, id) DO NOTHING RETURNING 1"
)
_ALTER = text(
    "UPDATE things SET born_us = :born_us, author = :author, tags = :tags, comments = :comments, gone = :gone "
    "WHERE what = :what AND id = :id"
)
_TALLY = text(
    "INSERT INTO tallies (sort, name, value) VALUES (:sort, :name, :value) "
    "ON CONFLICT (sort, name) DO UPDATE SET value = tallies.value + excluded.value"
)
_COUNT = text(
    "INSERT INTO counts (kind, step, start_s, count) VALUES (:kind, :step, :start_s, 1) "
    "ON CONFLICT (kind, step, start_s) DO UPDATE SET count = counts.count + 1"
)
_HEAR = text(
    "INSERT INTO hearings (kind, count, displaced, last_us, heard_us, delay_us) "
    "VALUES (:kind, 1, :displaced, :last_us, :heard_us, :delay_us) "
    "ON CONFLICT (kind) DO UPDATE SET count = hearings.count + 1, displaced = hearings.displaced + excluded.displaced, "
    "last_us = CASE WHEN excluded.last_us > hearings.last_us THEN excluded.last_us ELSE hearings.last_us END, "
    "heard_us = excluded.heard_us, delay_us = excluded.delay_us"
)


def count(session: Session, event: Event, now_us: int) -> None:
    """Let the event have its effect on totals and buckets. Once: the kit sees to that."""
    _change(session, event)
    kind, at_us = kind_of(event), happened_us(event)
    placed = has_place(at_us, now_us)
    if placed:
        session.execute(_COUNT, [{"kind": kind, "step": by, "start_s": start_of(at_us, by)} for by in STEP_S])
    session.execute(
        _HEAR,
        {
            "kind": kind,
            "displaced": 0 if placed else 1,
            "last_us": at_us if placed else 0,
            "heard_us": now_us,
            # Of a clock that is ahead of ours nothing can be said.
            "delay_us": max(0, now_us - at_us) if placed else 0,
        },
    )


def _change(session: Session, event: Event) -> None:
    what, name = thing_of(event)
    before = _hold(session, what, name)
    after = change(before or Thing(), event)
    row = {**asdict(after), "tags": json.dumps(after.tags), "what": what, "id": name}
    if before is None:
        if session.execute(_MAKE, row).first() is None:
            # Its events come from two producers, and so by two instances: the other one was first.
            _change(session, event)
            return
    elif after != before:
        session.execute(_ALTER, row)
    added = difference(worth(what, before or Thing()), worth(what, after))
    if added:
        # In one sequence everywhere, so that two transactions do not wait for each other.
        rows = [{"sort": sort, "name": name, "value": n} for (sort, name), n in sorted(added.items())]
        session.execute(_TALLY, rows)


def _hold(session: Session, what: str, name: str) -> Thing | None:
    """The thing, which no other transaction changes until this one ends."""
    row = session.execute(_HOLD, {"what": what, "id": name}).first()
    return (
        Thing(row.born_us, row.author, tuple(json.loads(row.tags)), row.comments, row.gone) if row else None
    )


def read_totals(session: Session) -> dict[str, int]:
    """How many users, posts and comments there are."""
    query = select(TallyRow.name, TallyRow.value).where(TallyRow.sort == "total")
    found = {row.name: row.value for row in session.execute(query)}
    return {name: found.get(name, 0) for name in ("users", "posts", "comments")}


def read_series(session: Session, kind: str, by: str, starts: range) -> dict[int, int]:
    """Start of bucket → number of events, for those that have any."""
    mine = (CountRow.kind == kind, CountRow.step == by)
    query = select(CountRow.start_s, CountRow.count.label("number")).where(*mine)
    within = query.where(CountRow.start_s >= starts.start, CountRow.start_s < starts.stop)
    return {row.start_s: row.number for row in session.execute(within)}


def list_tags(session: Session, limit: int, after: tuple[int, str] | None = None) -> list[Tag]:
    """At most `limit`, the most used first, behind the one with this count and name."""
    return [Tag(name, value) for name, value in _top(session, "tag", limit, after)]


def list_authors(session: Session, limit: int) -> list[tuple[str, int]]:
    """(id, number of published posts), the busiest first."""
    return _top(session, "author", limit)


def _top(
    session: Session, sort: str, limit: int, after: tuple[int, str] | None = None
) -> list[tuple[str, int]]:
    query = select(TallyRow.name, TallyRow.value).where(TallyRow.sort == sort, TallyRow.value > 0)
    if after is not None:
        value, name = after
        behind = and_(TallyRow.value == value, TallyRow.name > name)
        query = query.where(or_(TallyRow.value < value, behind))
    ordered = query.order_by(TallyRow.value.desc(), TallyRow.name).limit(limit)
    return [(row.name, row.value) for row in session.execute(ordered)]


def list_hearings(session: Session) -> list[Hearing]:
    """Of each kind that was heard of, by name."""
    columns = (HearingRow.kind, HearingRow.count, HearingRow.displaced)
    times = (HearingRow.last_us, HearingRow.heard_us, HearingRow.delay_us)
    return [Hearing(*row) for row in session.execute(select(*columns, *times).order_by(HearingRow.kind))]


def forget_old(session: Session, now_us: int) -> None:
    """Delete minutes that are not kept any longer, and tallies of what is not there any more."""
    old_s = now_us // 1_000_000 - MINUTES_KEPT_S
    write(session, delete(CountRow).where(CountRow.step == "minute", CountRow.start_s < old_s))
    write(session, delete(TallyRow).where(TallyRow.sort != "total", TallyRow.value == 0))
