"""The page: totals, a bar chart for each kind that grows something, and the top tags. One document without scripts; no I/O but its template."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup

from services.analytics.domain import Kind, Tag

_FOLDER = Path(__file__).parent
_STYLE = (_FOLDER / "page.css").read_text()
_TEMPLATE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
).get_template("page.html.j2")

# Nothing is loaded, run or sent; only this very style counts.
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SHOWN: Mapping[Kind, str] = {
    "user.created": "New users",
    "post.published": "Posts published",
    "comment.created": "Comments written",
}

# Units of the drawing, which is as wide as its page lets it be.
WIDTH, HEIGHT, FLOOR, CEILING = 640, 180, 160, 18


@dataclass(frozen=True, slots=True)
class Bar:
    day: str
    count: int
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Chart:
    """`id` begins the ids of its elements; `most` is what the highest bar stands for."""

    id: str
    title: str
    description: str
    most: int
    bars: tuple[Bar, ...]
    width: int = WIDTH
    height: int = HEIGHT
    floor: int = FLOOR


def draw(kind: Kind, starts: Sequence[int], counts: Mapping[int, int]) -> Chart:
    """A bar for each day; `starts` (at least one) are their first seconds."""
    most = max((counts.get(start, 0) for start in starts), default=0)
    room = WIDTH / len(starts)
    bars = []
    for number, start in enumerate(starts):
        count = counts.get(start, 0)
        # Less than a unit is not seen: what has happened at all is shown.
        height = max(1.0, round((FLOOR - CEILING) * count / most, 1)) if count else 0.0
        day = datetime.fromtimestamp(start, UTC).date().isoformat()
        bars.append(
            Bar(day, count, round(number * room, 1), round(FLOOR - height, 1), round(room * 0.8, 1), height)
        )
    total = sum(bar.count for bar in bars)
    top = max(bars, key=lambda bar: bar.count)
    peak = f", at most {most} on {top.day}" if most else ""
    description = f"From {bars[0].day} to {bars[-1].day}: {total} in all{peak}."
    return Chart(kind.replace(".", "-"), SHOWN[kind], description, most, tuple(bars))


def render(totals: Mapping[str, int], as_of: str, charts: Sequence[Chart], tags: Sequence[Tag]) -> str:
    """The document. All text is escaped but the style, which is ours."""
    return _TEMPLATE.render(
        style=Markup(_STYLE),  # noqa: S704
        totals=totals,
        as_of=as_of,
        charts=charts,
        tags=tags,
    )
