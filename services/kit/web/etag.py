"""Entity tags: made from what a representation holds, compared with what a client has."""

from __future__ import annotations

import hashlib


def entity_tag(data: bytes) -> str:
    """The strong entity tag of a representation, made from its bytes: it cannot lag behind what they say."""
    return '"' + hashlib.sha256(data).hexdigest()[:24] + '"'


def names_tag(header: str | None, tag: str) -> bool:
    """Whether an If-Match or If-None-Match header names the tag, or is `*`.

    `W/` is passed over in both: HAProxy makes a strong tag weak when it compresses the answer, and a client
    that read it so must still be able to say If-Match.
    """
    if not header:
        return False
    named = [part.strip().removeprefix("W/") for part in header.split(",")]
    return "*" in named or tag in named
