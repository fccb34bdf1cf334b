"""gunicorn's gevent worker, made to end well. Imported only where `WORKER_CLASS=gevent` has patched the library."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import gevent
from gunicorn import util
from gunicorn.workers.ggevent import GeventWorker as _GeventWorker

from services.kit.server.worker import LINGER_S, linger


class GeventWorker(_GeventWorker):
    """The original waits for idle connections until `graceful_timeout` when it is to stop; this one closes them after
    `LINGER_S`, for a request that a client may already be sending."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clients: dict[Any, socket.socket] = {}
        self._waiting: set[Any] = set()

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        greenlet = gevent.getcurrent()
        self._clients[greenlet] = client
        try:
            super().handle(listener, client, addr)
        finally:
            del self._clients[greenlet]

    @contextlib.contextmanager
    def timeout_ctx(self) -> Iterator[None]:
        """Around each wait for a request: until its head is whole, or the connection has been kept for too long."""
        greenlet = gevent.getcurrent()
        self._waiting.add(greenlet)
        try:
            with gevent.Timeout(self.cfg.keepalive if self.alive else LINGER_S, False):
                yield
        finally:
            self._waiting.discard(greenlet)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.alive:
            gevent.spawn_later(LINGER_S, self._end_waits)
        super().handle_exit(sig, frame)

    def _end_waits(self) -> None:
        for greenlet in self._waiting:
            # It reads the end of the stream. Past gevent, whose own shutdown raises an error in it instead.
            with contextlib.suppress(OSError):
                self._clients[greenlet]._sock.shutdown(socket.SHUT_RD)  # type: ignore[attr-defined]


# The original's, in gunicorn's loop over the requests of a connection, does not linger.
util.close = linger
