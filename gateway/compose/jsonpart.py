"""A part's body as a piece of a larger JSON text: checked to be JSON, and copied rather than written anew."""

from __future__ import annotations

import json
import json.scanner
import re
from typing import Any, Literal

from pydantic_core import from_json

Shape = Literal["any", "object", "array"]

_SPACE = re.compile(rb"[ \t\n\r]*")
_SCANNER: Any = json.decoder.JSONDecoder().scan_once  # type: ignore[attr-defined]
_FIRST_BYTES = {"object": b"{", "array": b"["}


class NotUsable(ValueError):
    """The body is no JSON, or not of the shape that was declared; the text says which."""


def member_of(body: bytes, name: str | None, shape: Shape) -> bytes:
    """The JSON text of one member of the object in `body`; of all of it without a name. Raises NotUsable.

    What comes back is valid JSON in UTF-8, nested at most 200 deep, and every byte of it stood in `body`.
    """
    if not body.strip(b" \t\n\r"):
        raise NotUsable("the body is empty")
    text = _parsed(body) if name is None else _only_member(body, name) or _one_of_many(body, name)
    first = _FIRST_BYTES.get(shape)
    if first is not None and text[:1] != first:
        raise NotUsable(f"not of the declared shape: no {shape}")
    return text


def _parsed(text: bytes) -> bytes:
    try:
        from_json(text, allow_inf_nan=False, cache_strings="none")
    except ValueError:
        raise NotUsable("the body is not JSON, or nested too deep") from None
    return text.strip(b" \t\n\r")


def _only_member(body: bytes, name: str) -> bytes | None:
    """For an object of this member alone, the common case: what stands between is parsed once. None for any other."""
    start = re.match(rb'[ \t\n\r]*\{[ \t\n\r]*"%s"[ \t\n\r]*:' % re.escape(name.encode()), body)
    end = body.rstrip(b" \t\n\r")
    if start is None or not end.endswith(b"}"):
        return None
    try:
        # With further members in it, this is no JSON value.
        return _parsed(end[start.end() : -1])
    except NotUsable:
        return None


def _one_of_many(body: bytes, name: str) -> bytes:
    _parsed(body)
    text = body.decode()
    at = _after_space(text, 0)
    if text[at] != "{":
        raise NotUsable("not of the declared shape: no object")
    found: str | None = None
    at = _after_space(text, at + 1)
    while text[at] != "}":
        key, at = _SCANNER(text, at)
        at = _after_space(text, _after_space(text, at) + 1)
        _, end = _SCANNER(text, at)
        if key == name:
            found = text[at:end]
        at = _after_space(text, end)
        if text[at] == ",":
            at = _after_space(text, at + 1)
    if found is None:
        raise NotUsable(f"not of the declared shape: no member {name!r}")
    return found.encode()


def _after_space(text: str, at: int) -> int:
    while text[at] in " \t\n\r":
        at += 1
    return at
