"""Bodies of requests: how large they may be, whatever their framing, and how many threads the late ones may hold.

Flask's MAX_CONTENT_LENGTH cuts a chunked body short without a word, so the bytes are counted here.

The edge holds a request back until its body is whole or its buffer full, so that a short body never makes a thread wait.
A longer one is read at the speed of its sender. One client that sends a few of them drop by drop would hold every
thread, the one that answers health checks too, and with it every instance of a service. So only some threads may wait.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator
from typing import Any

from werkzeug.exceptions import RequestEntityTooLarge

# Any HAProxy's buffer holds 15 KiB of head and body (tune.bufsize less tune.maxrewrite), ours more, and keeps books of its own in it.
WHOLE_AT_THE_EDGE = 12 * 1024
_PER_HEADER = 32
# Where greenlets wait in place of threads: a fraction of the connections that a worker takes.
GREENLETS = 256


class CountingInput:
    """`wsgi.input` that raises RequestEntityTooLarge (413) once more than `limit` bytes have come through.

    werkzeug's LimitedStream ends a body at its limit as if it were whole.
    """

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int = -1) -> bytes:
        # One byte more than is left tells "exactly the limit" from "more than it".
        most = self._left + 1
        data: bytes = self._stream.read(most if size < 0 else min(size, most))
        self._left -= len(data)
        if self._left < 0:
            raise RequestEntityTooLarge("The body is larger than this service takes.")
        return data


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


class Arrivals:
    """Reads bodies that may be late, a bounded number of them at a time. Safe for threads."""

    def __init__(self, places: int, within_s: float) -> None:
        self._places = threading.BoundedSemaphore(places)
        self._within_s = within_s

    def await_body(self, environ: dict[str, Any]) -> int | None:
        """Have the whole body in `wsgi.input` before anything else happens. Returns the status to refuse with: 408 when
        it does not come in time, 400 when it is broken off or its framing is, 413 when it is too long after all, 503 when too
        many are waited for; or None."""
        length = declared_length(environ)
        chunked = length is None and bool(environ.get("HTTP_TRANSFER_ENCODING"))
        if not chunked and (not length or length + _head_bytes(environ) <= WHOLE_AT_THE_EDGE):
            return None
        connection = environ.get("gunicorn.socket")
        if not self._places.acquire(blocking=False):
            stop_reading(connection)
            return 503
        try:
            return self._read(environ, length, connection)
        finally:
            self._places.release()

    def _read(
        self, environ: dict[str, Any], length: int | None, connection: socket.socket | None
    ) -> int | None:
        with _deadline(connection, self._within_s) as late:
            try:
                data = environ["wsgi.input"].read()
            except RequestEntityTooLarge:
                return 413
            except Exception:  # gunicorn's own, for framing that is broken or ends too soon
                return 408 if late.is_set() else 400
        if length is not None and len(data) < length:
            return 408 if late.is_set() else 400
        if late.is_set():
            return 408
        environ["wsgi.input"] = io.BytesIO(data)
        return None


@contextlib.contextmanager
def _deadline(connection: socket.socket | None, within_s: float) -> Iterator[threading.Event]:
    """After `within_s` reading from the connection meets its end. A timeout of the socket would not do: each byte renews it."""
    late = threading.Event()

    def end() -> None:
        late.set()
        stop_reading(connection)

    timer = threading.Timer(within_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def stop_reading(connection: socket.socket | None) -> None:
    """Nothing more is read: else gunicorn would wait for the rest, to be able to keep the connection."""
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RD)


def _head_bytes(environ: dict[str, Any]) -> int:
    """About what the head takes in the edge's buffer."""
    headers = sum(len(key) + len(value) + _PER_HEADER for key, value in environ.items() if key[:5] == "HTTP_")
    return headers + len(environ.get("RAW_URI") or "")
