"""Limits on request bodies that hold whatever the framing: declared length and chunked alike.

Flask's MAX_CONTENT_LENGTH cuts a chunked body short without a word, so the bytes are counted here.
"""

from __future__ import annotations

import io
from typing import Any

from werkzeug.exceptions import RequestEntityTooLarge


class CountingInput(io.RawIOBase):
    """`wsgi.input` that raises RequestEntityTooLarge (413) once more than `limit` bytes have come through."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise RequestEntityTooLarge("The body is larger than this service takes.")
        return data

    def _most(self, size: int | None) -> int:
        # One byte more than is left tells "exactly the limit" from "more than it".
        return self._left + 1 if size is None or size < 0 else min(size, self._left + 1)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size >= 0:
            return self._count(self._stream.read(self._most(size)))
        chunks: list[bytes] = []
        while chunk := self._stream.read(min(self._most(None), 65536)):
            chunks.append(self._count(chunk))
        return b"".join(chunks)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readline(self, size: int | None = -1) -> bytes:
        return self._count(self._stream.readline(self._most(size)))


def declared_length(environ: dict[str, Any]) -> int | None:
    """The Content-Length, or None when there is none."""
    text = environ.get("CONTENT_LENGTH") or ""
    return int(text) if text.isascii() and text.isdigit() else None


def limit(environ: dict[str, Any], limit_bytes: int) -> bool:
    """Put the limit on a request. False when its declared length is above it already.

    A declared length is enforced by the server's own framing; a body without one is counted.
    """
    length = declared_length(environ)
    if length is not None:
        return length <= limit_bytes
    if environ.get("HTTP_TRANSFER_ENCODING"):
        environ["wsgi.input"] = CountingInput(environ["wsgi.input"], limit_bytes)
    return True
