"""Opaque cursors for keyset pagination: where the next page starts, not how many rows to skip.

A cursor holds the sort keys of the last row that was given, and a digest of the filters it was made under, so
that it cannot be carried over to another list. It is no secret and needs no signature: whatever a client writes
into it, it can only name another place in a list that the client may read anyway.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, Field, StringConstraints

from services.kit.text import storable
from services.kit.web.problems import Problem

MAX_CURSOR_LENGTH = 1500
MAX_LIMIT = 100
_INT64 = 2**63

Key = int | str


class BadCursor(Problem):
    """Not a cursor of this list."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, "Bad cursor", reason)


class Page(BaseModel):
    """Query parameters of every list: `cursor` is `page.nextCursor` of the page before. A list's filters and its order are
    the further fields of its subclass."""

    cursor: Annotated[str, StringConstraints(min_length=1, max_length=MAX_CURSOR_LENGTH)] | None = None
    limit: int = Field(20, ge=1, le=MAX_LIMIT)

    def scope(self, *owners: str) -> str:
        """What a cursor is good for: this list, with these filters; `owners` tell lists of one class apart."""
        filters = self.model_dump(exclude={"cursor", "limit"})
        return scope_of(type(self).__name__, *owners, *filters.values())

    def after(self, *shape: type[int] | type[str], owners: Sequence[str] = ()) -> tuple[Any, ...] | None:
        """The sort keys, of the types in `shape`, after which the page starts; None for the first. Raises BadCursor."""
        return decode_cursor(self.cursor, self.scope(*owners), shape) if self.cursor is not None else None


class Shown(Protocol):
    """What has a shape in which it leaves its service."""

    def to_json(self) -> dict[str, Any]: ...


T = TypeVar("T", bound=Shown)


def page_of(
    rows: Sequence[T], query: Page, keys: Callable[[T], Sequence[Key]], owners: Sequence[str] = ()
) -> dict[str, Any]:
    """The body of one page: `{"data": […], "page": {"limit", "nextCursor"}}`; no next cursor on the last one.

    `rows` holds one more than `query.limit` where there is a next page; `keys` are a row's sort keys.
    """
    shown = rows[: query.limit]
    following = encode_cursor(query.scope(*owners), keys(shown[-1])) if len(rows) > query.limit else None
    return {
        "data": [row.to_json() for row in shown],
        "page": {"limit": query.limit, "nextCursor": following},
    }


def scope_of(*filters: object) -> str:
    """A short digest of the filters and the order of a list; a cursor is good for that list only."""
    text = json.dumps([None if f is None else str(f) for f in filters])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def encode_cursor(scope: str, keys: Sequence[Key]) -> str:
    """The cursor after the row with these sort keys."""
    raw = json.dumps([scope, *keys], separators=(",", ":"), ensure_ascii=False).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_cursor(text: str, scope: str, shape: Sequence[type[int] | type[str]]) -> tuple[Key, ...]:
    """The sort keys in a cursor, of the types in `shape`. Integers fit 64 bits. Raises BadCursor."""
    if len(text) > MAX_CURSOR_LENGTH or not text.isascii():
        raise BadCursor("too long, or not ASCII")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        values = json.loads(raw.decode())
    except (binascii.Error, UnicodeDecodeError, ValueError, RecursionError):
        raise BadCursor("unreadable") from None
    if not isinstance(values, list) or len(values) != len(shape) + 1:
        raise BadCursor("of another shape")
    if values[0] != scope:
        raise BadCursor("made for another list: start again without it")
    keys = values[1:]
    if not all(_fits(value, kind) for value, kind in zip(keys, shape, strict=True)):
        raise BadCursor("of another shape")
    return tuple(keys)


def _fits(value: object, kind: type) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and -_INT64 <= value < _INT64
    return isinstance(value, str) and storable(value)
