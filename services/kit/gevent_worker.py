"""gunicorn's gevent worker, made to end well. Imported only where `WORKER_CLASS=gevent` has patched the library."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Any

import gevent
from gunicorn.workers.ggevent import GeventWorker as _GeventWorker

# As gunicorn's gthread: for a request that a client may already be sending on a connection that it keeps.
LINGER_S = 2.0


class _Idle:
    """The time in which a kept connection waits for its next request: it may be closed."""

    def __init__(self, worker: GeventWorker, timeout_s: float) -> None:
        self._idle = worker.idle
        self._timeout = gevent.Timeout(timeout_s, False)

    def __enter__(self) -> None:
        self._idle.add(gevent.getcurrent())
        self._timeout.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        self._idle.discard(gevent.getcurrent())
        self._timeout.close()
        return error is self._timeout


class GeventWorker(_GeventWorker):
    """The original waits with its end for every kept connection, that is until its graceful timeout."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.idle: set[Any] = set()
        self._clients: dict[Any, socket.socket] = {}

    def timeout_ctx(self) -> _Idle:
        return _Idle(self, self.cfg.keepalive if self.alive else LINGER_S)

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        self._clients[gevent.getcurrent()] = client
        try:
            super().handle(listener, client, addr)
        finally:
            del self._clients[gevent.getcurrent()]

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.alive:
            gevent.spawn_later(LINGER_S, self._close_idle)
        super().handle_exit(sig, frame)

    def _close_idle(self) -> None:
        for greenlet in list(self.idle):
            client = self._clients.get(greenlet)
            if client is not None:
                # Who reads from it finds its end, and closes it. Past gevent, whose shutdown wakes him with an error instead.
                with contextlib.suppress(OSError):
                    client._sock.shutdown(socket.SHUT_RD)  # type: ignore[attr-defined]
