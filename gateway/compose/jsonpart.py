"""A part's body as a piece of a larger JSON text: checked to be JSON, and copied rather than encoded again."""

from __future__ import annotations

from typing import Literal

import msgspec
from pydantic_core import from_json

Shape = Literal["any", "object", "array"]

_FIRST_BYTES = {"object": b"{", "array": b"["}
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


class NotUsable(ValueError):
    """The body is no JSON, or not of the shape that was declared; the text says which."""


def member_of(body: bytes, name: str | None, shape: Shape) -> bytes:
    """The JSON text of one member of the object in `body`; of all of it without a name. Raises NotUsable.

    What comes back is valid JSON in UTF-8, nested at most 200 deep, and every byte of it stood in `body`.
    """
    text = body.strip(b" \t\n\r")
    if not text:
        raise NotUsable("the body is empty")
    try:
        # msgspec.Raw passes over what a member holds: encoding, nesting and surrogates are checked here.
        from_json(text, allow_inf_nan=False, cache_strings="none")
    except ValueError:
        raise NotUsable("the body is not JSON, or nested too deep") from None
    if name is not None:
        text = _member(text, name)
    first = _FIRST_BYTES.get(shape)
    if first is not None and text[:1] != first:
        raise NotUsable(f"not of the declared shape: no {shape}")
    return text


def _member(text: bytes, name: str) -> bytes:
    try:
        members = _MEMBERS.decode(text)
    except msgspec.DecodeError:
        raise NotUsable("not of the declared shape: no object") from None
    if name not in members:
        raise NotUsable(f"not of the declared shape: no member {name!r}")
    return bytes(members[name])
