"""Ids, text that every database here takes, names of persons, and times as numbers and as text."""

from __future__ import annotations

import re
import time
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

# Of accounts, posts, products …: a UUID's 32 hexadecimal digits.
ID_PATTERN = "[0-9a-f]{32}"

MAX_NAME_CHARS = 100
# Unicode's control characters, and those of them that text of several lines does without: as part of a pattern.
_CONTROL = r"\x00-\x1f\x7f-\x9f"
_CONTROL_IN_PROSE = r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
# Cc control, Cs lone surrogate (neither UTF-8 nor PostgreSQL takes it), Cn unassigned.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Cn"})
# They turn the reading direction of what follows, and so make one name look like another.
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def storable(text: str) -> bool:
    """Whether every database here takes the text: valid Unicode (no lone surrogates), and no NUL (PostgreSQL)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def one_line(text: str) -> str:
    """The text itself; ValueError when it holds control characters or is not valid Unicode. For pydantic's AfterValidator."""
    return _checked(text, _CONTROL)


def prose(text: str) -> str:
    """Like `one_line`, with line breaks and tabs allowed."""
    return _checked(text, _CONTROL_IN_PROSE)


def _checked(text: str, refused: str) -> str:
    if not storable(text) or re.search(f"[{refused}]", text):
        raise ValueError("holds control characters, or is not valid Unicode")
    return text


def described(**schema: Any) -> Any:
    """For Annotated: what a check asks for, in the terms of the OpenAPI document. The check itself stands beside it."""
    return Field(json_schema_extra=schema)


def _any_of(refused: str) -> Any:
    return described(pattern=f"^[^{refused}]*$")


def _not_blank(refused: str) -> Any:
    return described(pattern=rf"^[^{refused}]*[^{refused}\s][^{refused}]*$")


LINE, SOME_LINE = _any_of(_CONTROL), _not_blank(_CONTROL)
PROSE, SOME_PROSE = _any_of(_CONTROL_IN_PROSE), _not_blank(_CONTROL_IN_PROSE)

# What a search is asked for; blank searches nothing.
Words = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200), AfterValidator(prose), PROSE]


def check_name(value: str) -> str:
    """The name with single spaces, in NFC: 1–100 characters, no control or direction characters. Raises ValueError."""
    name = unicodedata.normalize("NFC", " ".join(value.split()))
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise ValueError(f"must be 1 to {MAX_NAME_CHARS} characters long")
    if any(unicodedata.category(c) in _REFUSED_CATEGORIES or c in _BIDI_CONTROLS for c in name):
        raise ValueError("must not hold control characters")
    return name


# Of a request's body. Longer than the longest name, whose white space is taken off.
Name = Annotated[
    str,
    Field(max_length=400),
    AfterValidator(check_name),
    _not_blank(_CONTROL + "".join(sorted(_BIDI_CONTROLS))),
    described(maxLength=MAX_NAME_CHARS),
]


def now_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def iso(moment_us: int) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC."""
    seconds, micros = divmod(moment_us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{micros:06d}Z"
