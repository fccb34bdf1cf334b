"""What a part of a composed answer declares about its keeping, and what the cache tells of an answer that it gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.model import Answer

Scope = Literal["public", "subject"]
State = Literal["HIT", "MISS", "STALE", "BYPASS"]


@dataclass(frozen=True, slots=True)
class PartPolicy:
    """How long an answer is kept. Seconds: `ttl_s` fresh, then `swr_s` given while a new one is fetched, and `sie_s` given
    when fetching fails. `scope` `subject`: for that caller (and these scopes of his token) alone."""

    ttl_s: float
    swr_s: float = 0.0
    sie_s: float = 0.0
    scope: Scope = "public"


@dataclass(frozen=True, slots=True)
class Part:
    """An answer with a whole body (bytes), and where it came from. `age_s` since an instance gave it, `stale_s` since it is
    no longer fresh (0 while it is)."""

    answer: Answer
    state: State
    age_s: float = 0.0
    stale_s: float = 0.0


def part_of(answer: Answer) -> Part:
    """A part from an answer of the cache."""
    given = answer.header("x-cache")
    state: State = given if given in ("HIT", "MISS", "STALE") else "BYPASS"  # type: ignore[assignment]
    if not isinstance(answer.body, bytes):
        answer.body = b"".join(answer.body)
    return Part(answer, state, _seconds(answer, "age"), _seconds(answer, "x-stale-age"))


def _seconds(answer: Answer, name: str) -> float:
    text = answer.header(name)
    return float(text) if text is not None and text.isascii() and text.isdigit() else 0.0
