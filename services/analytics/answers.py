"""What analytics answers, for its OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from services.kit.web.resources import Many, One


class Totals(BaseModel):
    """What there is now. `asOf` is when it was read, `lastEventAt` when the newest event in it happened; `delayS`, how long
    the one heard last was on its way."""

    users: int
    posts: int
    comments: int
    asOf: datetime
    lastEventAt: datetime | None
    delayS: float | None


class Point(BaseModel):
    """`start` is the first moment of the minute, hour or day, in UTC."""

    start: datetime
    count: int


class Series(BaseModel):
    kind: str
    by: str
    total: int
    points: list[Point]


class TagShown(BaseModel):
    tag: str
    count: int


class AuthorShown(BaseModel):
    authorId: str
    posts: int


class Heard(BaseModel):
    """`withoutBucket` counts events whose own time cannot be believed: they are in no series."""

    kind: str
    count: int
    withoutBucket: int
    lastEventAt: datetime | None
    lastHeardAt: datetime
    delayS: float


class Details(BaseModel):
    asOf: datetime
    authors: list[AuthorShown]
    events: list[Heard]


TotalsAnswer, SeriesAnswer, TagsAnswer, DetailsAnswer = One[Totals], One[Series], Many[TagShown], One[Details]
HTML: dict[Any, Any] = {200: {"content": {"text/html": {"schema": {"type": "string"}}}}}
