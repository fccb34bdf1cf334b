"""Bodies: one that can be sent once, and content encodings undone piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

PIECE_BYTES = 64 * 1024


class BodyFailed(ValueError):
    """The caller's own body could not be sent as announced: its iterator raised, or gave more or less than its Content-Length."""


class OnceBody:
    """A body that can be read once, and remembers whether reading has begun: after that it cannot be sent again."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.begun = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.begun = True
        try:
            return next(self._chunks)
        except (StopIteration, GeneratorExit):
            raise
        except Exception as error:
            # As it is, an OSError of the caller's own source would look like one of the upstream's connection.
            raise BodyFailed(f"the request's body could not be read: {error}") from error


class BadEncoding(Exception):
    """The body is not encoded as its Content-Encoding says."""


class Decoder:
    """Undoes gzip or deflate. What comes out is given in pieces of at most 64 KiB, whatever is packed into what goes in."""

    def __init__(self, encoding: str) -> None:
        # 47: gzip or zlib, whichever its first bytes show. Ref: zlib's inflateInit2.
        self._inflate = zlib.decompressobj(47)
        self._may_be_raw = encoding == "deflate"
        self._first = b""
        self._fed = False

    @staticmethod
    def knows(encoding: str) -> bool:
        return encoding in ("gzip", "x-gzip", "deflate")

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` unpacks to. Raises BadEncoding."""
        self._fed = True
        if self._may_be_raw:
            data = self._first = self._first + data
            if len(data) < 2:
                return
            self._may_be_raw = False
            if data[0] & 15 != 8 or int.from_bytes(data[:2], "big") % 31:
                # Some servers call deflate what lacks zlib's wrapping (RFC 9110, section 8.4.1.2; its header: RFC 1950, 2.2).
                self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        while True:
            try:
                piece = self._inflate.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise BadEncoding(f"its content encoding: {error}") from error
            if piece:
                yield piece
            if self._inflate.unused_data:
                raise BadEncoding("more follows the end of its content encoding")
            data = self._inflate.unconsumed_tail
            if not data and len(piece) < PIECE_BYTES:
                return

    def end(self) -> None:
        """All has been fed. Raises BadEncoding where the encoded body is cut short."""
        if self._fed and not self._inflate.eof:
            raise BadEncoding("its content encoding ends early")
