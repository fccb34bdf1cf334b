"""Ids, text that every database here takes, and times as numbers and as text."""

from __future__ import annotations

import time
import unicodedata
from datetime import UTC, datetime

# Of accounts, posts, products …: a UUID's 32 hexadecimal digits.
ID_PATTERN = "[0-9a-f]{32}"


def storable(text: str) -> bool:
    """Whether every database here takes the text: valid Unicode (no lone surrogates), and no NUL (PostgreSQL)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def one_line(text: str) -> str:
    """The text itself; ValueError when it holds control characters or is no valid Unicode. For pydantic's AfterValidator."""
    return _checked(text, "")


def prose(text: str) -> str:
    """Like `one_line`, with line breaks and tabs allowed."""
    return _checked(text, "\n\r\t")


def _checked(text: str, allowed: str) -> str:
    if not storable(text) or any(unicodedata.category(c) == "Cc" and c not in allowed for c in text):
        raise ValueError("holds control characters, or is no valid Unicode")
    return text


def now_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def iso(moment_us: int) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC."""
    seconds, micros = divmod(moment_us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{micros:06d}Z"
