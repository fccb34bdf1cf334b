"""Bodies of requests: how they come in, each piece of one within a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gevent
from gevent.lock import Semaphore
from gunicorn.http.body import ChunkedReader
from werkzeug.exceptions import RequestEntityTooLarge

from gateway.errors import Refused
from gateway.limits.loadshed import Place
from services.kit.web.body import stop_reading

# Each comes within a time limit: small enough for a slow line.
CHUNK_BYTES = 16 * 1024
TOO_LARGE = "The body is larger than the gateway passes on."
NOT_WHOLE = "The body is incomplete or malformed."
LATE = "The body did not come in time."
# How long the end of a body waits for its reader to notice.
END_S = 1.0


class Body:
    """A request's body, read with a time limit for each piece and one for all of it; an iterator of what `begin` left.

    All of it raises Refused: 408 too late, 413 too long, 400 broken off. `place` is held until it has all come, or `close`.
    """

    def __init__(self, stream: Any, length: int | None, pause_s: float, until: float, place: Place) -> None:
        self._stream = stream
        self._left = length
        self._pause_s = pause_s
        self._until = until
        self._place = place
        self._first = b""

    def begin(self, most_bytes: int) -> bytes | Body:
        """The whole body if it is not longer, else this object."""
        pieces: list[bytes] = []
        size = 0
        while self._left != 0 and size < most_bytes:
            pieces.append(self._piece())
            size += len(pieces[-1])
        self._first = b"".join(pieces)
        if self._left != 0:
            return self
        self.close()
        return self._first

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        data, self._first = self._first, b""
        while not data and self._left != 0:
            data = self._piece()
        if not data:
            self.close()
            raise StopIteration
        return data

    def close(self) -> None:
        """No more of it is waited for."""
        self._place.leave()

    def _piece(self) -> bytes:
        """The next piece: `CHUNK_BYTES`, or what is left. With the last, nothing is."""
        size = CHUNK_BYTES if self._left is None else min(CHUNK_BYTES, self._left)
        data = self._read(size)
        if self._left is None:
            self._left = 0 if len(data) < size else None
        elif len(data) < size:
            raise Refused(400, NOT_WHOLE)
        else:
            self._left -= size
        return data

    def _read(self, size: int) -> bytes:
        left_s = self._until - time.monotonic()
        late = gevent.Timeout(max(0.001, min(self._pause_s, left_s)))
        late.start()
        try:
            data: bytes = self._stream.read(size)
        except gevent.Timeout as timeout:
            if timeout is not late:
                raise
            raise Refused(408, LATE) from None
        except RequestEntityTooLarge:
            raise Refused(413, TOO_LARGE) from None
        except Exception as error:  # gunicorn's own, for framing that is broken or ends too soon
            raise Refused(400, NOT_WHOLE) from error
        finally:
            late.close()
        return data


class LiveBody:
    """A request's body, piece by piece as each comes, of at most `most_bytes`, with a time limit for each alone. It may be read
    while the request is being answered, and must be closed before the server goes on with the connection.

    Raises Refused as `Body` does.
    """

    def __init__(self, environ: dict[str, Any], pause_s: float, most_bytes: int) -> None:
        self._connection = environ.get("gunicorn.socket")
        self._pieces = _arriving(environ["wsgi.input"].reader)
        self._pause_s = pause_s
        self._left = most_bytes
        self._reading = Semaphore()
        self._ended = False

    def __iter__(self) -> LiveBody:
        return self

    def __next__(self) -> bytes:
        with self._reading:
            if self._ended:
                raise StopIteration
            piece = self._read()
        self._left -= len(piece)
        if self._left < 0:
            raise Refused(413, TOO_LARGE)
        return piece

    def close(self) -> None:
        """No more of it is waited for; a reader that waits meets its end."""
        if self._ended:
            return
        stop_reading(self._connection)
        if self._reading.acquire(timeout=END_S):
            self._ended = True
            self._reading.release()

    def _read(self) -> bytes:
        late = gevent.Timeout(self._pause_s)
        late.start()
        try:
            return next(self._pieces)
        except StopIteration:
            self._ended = True
            raise
        except gevent.Timeout as timeout:
            if timeout is not late:
                raise
            raise Refused(408, LATE) from None
        except Exception as error:  # gunicorn's own, for framing that is broken or ends too soon
            raise Refused(400, NOT_WHOLE) from error
        finally:
            late.close()


def _arriving(reader: Any) -> Iterator[bytes]:
    """What gunicorn's reader of a body has, when it comes: its own `read` waits until there is as much as was asked for."""
    if isinstance(reader, ChunkedReader):
        yield from reader.parser
        return
    while reader.length:
        data = reader.unreader.read(read_ahead=reader.length)
        piece, rest = data[: reader.length], data[reader.length :]
        if rest:
            reader.unreader.unread(rest)
        if not piece:
            raise EOFError("the connection has ended")
        reader.length -= len(piece)
        yield piece
