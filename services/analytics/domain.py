"""What analytics makes of an event, and what it may be asked. No I/O.

Events may come late, twice over by another way, or in another sequence than they happened. What is kept of a user or a post is
therefore the same in whatever sequence its events come, and each total is the sum of what these are worth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from services.auth.events import UserCreated
from services.kit.events.event import Event, subject_of
from services.kit.text import described, iso, storable
from services.kit.web.paging import Page
from services.kit.web.problems import Problem
from services.posts.events import CommentCreated, CommentDeleted, PostDeleted, PostPublished
from services.users.events import UserDeleted

Kind = Literal[
    "user.created", "user.deleted", "post.published", "post.deleted", "comment.created", "comment.deleted"
]
By = Literal["minute", "hour", "day"]

HEARD: tuple[type[Event], ...] = (
    UserCreated,
    UserDeleted,
    PostPublished,
    PostDeleted,
    CommentCreated,
    CommentDeleted,
)
STEP_S: Mapping[By, int] = {"minute": 60, "hour": 3600, "day": 86_400}
DEFAULT_POINTS: Mapping[By, int] = {"minute": 60, "hour": 48, "day": 30}
MAX_POINTS = 1000
MINUTES_KEPT_S = 7 * 86_400
# Clocks differ: what says that it happens later than this is no time to be believed.
AHEAD_S = 3600
EARLIEST_S = 946_684_800  # 2000-01-01: nothing of ours happened before
MAX_TEXT = 128

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT = r"\d{4}-\d{2}-\d{2}(?:[Tt]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?:[Zz]|[+-]\d{2}:\d{2}))?"
_US = 1_000_000


# -- events


def kind_of(event: Event) -> str:
    """Its type without the version: what its counts are asked for by."""
    return event.TYPE.rpartition(".")[0]


def happened_us(event: Event) -> int:
    """When it happened, by the event itself; a time without a zone is UTC."""
    match event:
        case UserCreated() | CommentCreated():
            return to_us(event.createdAt)
        case PostPublished():
            return to_us(event.publishedAt)
        case UserDeleted() | PostDeleted() | CommentDeleted():
            return to_us(event.deletedAt)
    raise TypeError(f"{type(event).__name__} is not counted")


def to_us(moment: datetime) -> int:
    """Microseconds since 1970, exactly."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def has_place(at_us: int, now_us: int) -> bool:
    """Whether a time can be believed, and has buckets. An event of another one counts in the totals all the same."""
    return EARLIEST_S * _US <= at_us <= now_us + AHEAD_S * _US


def start_of(at_us: int, by: By) -> int:
    """The start of its bucket in UTC, in seconds since 1970."""
    second = at_us // _US
    return second - second % STEP_S[by]


# -- users and posts


@dataclass(frozen=True, slots=True)
class Thing:
    """What is known of a user, or of a post with its comments. `born_us` 0: not heard of yet; what is gone comes never back."""

    born_us: int = 0
    author: str = ""
    tags: tuple[str, ...] = ()
    comments: int = 0
    gone: bool = False


GONE = Thing(gone=True)
Worth = dict[tuple[str, str], int]


def thing_of(event: Event) -> tuple[str, str]:
    """What the event is about: `user` or `post`, and its id."""
    return ("user" if isinstance(event, UserCreated | UserDeleted) else "post", subject_of(event))


def change(thing: Thing, event: Event) -> Thing:
    """The thing after the event. The same events give the same thing in every sequence."""
    if thing.gone:
        return thing
    match event:
        case UserDeleted() | PostDeleted():
            return GONE
        case CommentCreated():
            return replace(thing, comments=thing.comments + 1)
        case CommentDeleted():
            return replace(thing, comments=thing.comments - 1 - max(0, event.replies))
        case UserCreated():
            return replace(thing, born_us=max(thing.born_us, _born(event)))
        case PostPublished():
            tags = tuple(sorted({tag for tag in event.tags if _usable(tag)}))
            told = (_born(event), event.authorId if _usable(event.authorId) else "", tags)
            born, author, tags = max((thing.born_us, thing.author, thing.tags), told)
            return replace(thing, born_us=born, author=author, tags=tags)
    return thing


def _born(event: Event) -> int:
    # However odd its time, it has happened.
    return max(1, happened_us(event))


def _usable(text: str) -> bool:
    return 0 < len(text) <= MAX_TEXT and storable(text)


def worth(what: str, thing: Thing) -> Worth:
    """What the thing adds to which totals: (`total`, `author` or `tag`; name) → number, never less than 0."""
    if thing.gone:
        return {}
    found: Worth = {}
    if thing.comments > 0:
        found["total", "comments"] = thing.comments
    if thing.born_us:
        found["total", f"{what}s"] = 1
        found |= {("tag", tag): 1 for tag in thing.tags}
        if thing.author:
            found["author", thing.author] = 1
    return found


def difference(before: Worth, after: Worth) -> Worth:
    """What to add to the totals, without zeros."""
    changed = {key: after.get(key, 0) - before.get(key, 0) for key in before.keys() | after.keys()}
    return {key: number for key, number in changed.items() if number}


# -- questions


def _moment(given: Any) -> Any:
    if not isinstance(given, str) or not re.fullmatch(_MOMENT, given, re.ASCII):
        raise ValueError(
            "a day (2026-01-31) or a time with its zone (2026-01-31T12:00:00Z; + is %2B in a query)"
        )
    return to_us(datetime.fromisoformat(given.upper()))


# Microseconds since 1970.
Moment = Annotated[
    int,
    BeforeValidator(_moment, json_schema_input_type=str),
    described(pattern=f"^{_MOMENT}$", type="string"),
]


class BadRange(Problem):
    """422: a range of time that has no answer."""

    def __init__(self, reason: str) -> None:
        super().__init__(422, "Bad range", reason)


class SeriesQuery(BaseModel):
    """Query of GET /api/analytics/series: `from` is in the series, `to` is not. By default up to now: 60 minutes, 48 hours or 30 days."""

    kind: Kind
    by: By = "day"
    since_us: Moment | None = Field(None, alias="from")
    until_us: Moment | None = Field(None, alias="to")

    def starts(self, now_us: int) -> range:
        """The starts of its buckets, in seconds since 1970. Raises BadRange."""
        step, until_us = STEP_S[self.by], now_us + 1 if self.until_us is None else self.until_us
        since_us = self.since_us
        if since_us is None:
            since_us = (start_of(until_us - 1, self.by) - step * (DEFAULT_POINTS[self.by] - 1)) * _US
            since_us = max(since_us, EARLIEST_S * _US)
        self._check(since_us, until_us, now_us)
        starts = range(start_of(since_us, self.by), start_of(until_us - 1, self.by) + 1, step)
        if len(starts) > MAX_POINTS:
            raise BadRange(f"{len(starts)} points by {self.by}: at most {MAX_POINTS} are answered")
        return starts

    def _check(self, since_us: int, until_us: int, now_us: int) -> None:
        if since_us >= until_us:
            raise BadRange("`from` is not before `to`")
        if since_us < EARLIEST_S * _US:
            raise BadRange("nothing is counted before 2000-01-01")
        if until_us > now_us + STEP_S["day"] * _US:
            raise BadRange("`to` is more than a day ahead")
        if self.by == "minute" and since_us < now_us - MINUTES_KEPT_S * _US:
            raise BadRange("minutes are kept for 7 days")


class TagQuery(Page):
    """Query of GET /api/analytics/tags: the tags of published posts, the most used first."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag, and how many published posts have it."""

    tag: str
    count: int

    def to_json(self) -> dict[str, Any]:
        return {"tag": self.tag, "count": self.count}


@dataclass(frozen=True, slots=True)
class Hearing:
    """What has been heard of one kind. `last_us`: the newest time that could be believed, 0 for none; `delay_us`: from its own
    time until it was heard, of the one heard last."""

    kind: str
    count: int
    displaced: int
    last_us: int
    heard_us: int
    delay_us: int

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "count": self.count,
            "withoutBucket": self.displaced,
            "lastEventAt": iso(self.last_us) if self.last_us else None,
            "lastHeardAt": iso(self.heard_us),
            "delayS": round(self.delay_us / 1e6, 3),
        }
