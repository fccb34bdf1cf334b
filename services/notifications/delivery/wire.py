"""A bound for all of a conversation. A timeout of a socket bounds one wait alone: a server that sends a byte now and then has no end."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def cut_after(seconds: float, connection: Callable[[], socket.socket | None]) -> Iterator[None]:
    """End the connection when the time is over: what waits for it gets an error, or the end of its input.

    `connection` gives the socket of that moment, for TLS puts another in its place.
    """

    def cut() -> None:
        now = connection()
        if now is not None:
            with contextlib.suppress(OSError):
                now.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
