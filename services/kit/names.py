"""What a person may be called, the same for every service that keeps names."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field

MAX_NAME_CHARS = 100
# Cc control, Cs lone surrogate (neither UTF-8 nor PostgreSQL takes it), Cn unassigned.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Cn"})
# They turn the reading direction of what follows, and so make one name look like another.
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def check_name(value: str) -> str:
    """The name with single spaces, in NFC: 1–100 characters, no control or direction characters. Raises ValueError."""
    name = unicodedata.normalize("NFC", " ".join(value.split()))
    if not 1 <= len(name) <= MAX_NAME_CHARS:
        raise ValueError(f"must be 1 to {MAX_NAME_CHARS} characters long")
    if any(unicodedata.category(c) in _REFUSED_CATEGORIES or c in _BIDI_CONTROLS for c in name):
        raise ValueError("must not hold control characters")
    return name


# Of a request's body. Longer than the longest name, whose white space is taken off.
Name = Annotated[str, Field(max_length=400), AfterValidator(check_name)]
