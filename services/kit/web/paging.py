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
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from services.kit.text import storable

MAX_CURSOR_LENGTH = 1500
MAX_LIMIT = 100
_INT64 = 2**63

Key = int | str


class BadCursor(ValueError):
    """Not a cursor of this list."""


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


class Page(BaseModel):
    """Query parameters of every list: `cursor` is `page.nextCursor` of the page before."""

    cursor: Annotated[str, StringConstraints(min_length=1, max_length=MAX_CURSOR_LENGTH)] | None = None
    limit: int = Field(20, ge=1, le=MAX_LIMIT)


def page_json(items: Sequence[Any], next_cursor: str | None, limit: int) -> dict[str, Any]:
    """The body of one page: `{"data": […], "page": {"limit", "nextCursor"}}`; no next cursor on the last one."""
    return {"data": list(items), "page": {"limit": limit, "nextCursor": next_cursor}}
