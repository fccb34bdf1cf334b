"""gunicorn's gevent worker, made to end well. Imported only where `WORKER_CLASS=gevent` has patched the library."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from typing import Any

import gevent
import structlog
from gunicorn import util
from gunicorn.workers.ggevent import GeventWorker as _GeventWorker

from services.kit.http_input import READ_BYTES, BadRequest, Body, Request, Requests
from services.kit.http_output import Reply

# As gunicorn's gthread: for a request that a client may already be sending on a connection that it keeps.
LINGER_S = 2.0
SWEEP_S = 5.0
# libev's EV_READ.
READABLE = 1

log = structlog.get_logger(__name__)


class GeventWorker(_GeventWorker):
    """gunicorn's worker with a way of its own from bytes to WSGI and back, at a fifth of the processor time; and one
    that, told to stop, does not wait for kept connections.

    A connection is served by one greenlet. `idle` are those that wait for a next request, and since when.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: dict[socket.socket, float] = {}

    def run(self) -> None:
        sweeper = gevent.spawn(self._sweep)
        try:
            super().run()
        finally:
            sweeper.kill(block=False)

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve a connection to its end."""
        try:
            client.setblocking(True)
            self._serve(client, self._surroundings(listener, client, addr))
        except OSError as error:
            log.debug("connection lost", error=type(error).__name__)
        finally:
            self._idle.pop(client, None)
            client.close()

    def _surroundings(self, listener: Any, client: socket.socket, addr: Any) -> dict[str, Any]:
        """What the environment says of the connection."""
        server = listener.getsockname()
        return {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "gunicorn.socket": client,
            "SCRIPT_NAME": "",
            "SERVER_SOFTWARE": "breakwater",
            "SERVER_NAME": str(server[0]),
            "SERVER_PORT": str(server[1]),
            "REMOTE_ADDR": str(addr[0]),
            "REMOTE_PORT": str(addr[1]),
        }

    def _serve(self, client: socket.socket, surroundings: dict[str, Any]) -> None:
        requests = Requests()
        arrival = gevent.get_hub().loop.io(client.fileno(), READABLE)
        try:
            self._serve_all(client, requests, arrival, surroundings)
        finally:
            arrival.close()

    def _serve_all(
        self, client: socket.socket, requests: Requests, arrival: Any, surroundings: dict[str, Any]
    ) -> None:
        while True:
            try:
                request = self._next(client, requests, arrival)
            except BadRequest as error:
                util.write_error(client, error.status, error.reason, "")
                return self._linger(client)
            if request is None:
                return None
            reply = Reply(request, client, self._may_keep)
            if not self._answer(request, reply, requests, client, surroundings):
                return None
            if not request.complete:
                return self._linger(client)
            if not reply.keep:
                return None

    def _may_keep(self) -> bool:
        return bool(self.alive)

    def _next(self, client: socket.socket, requests: Requests, arrival: Any) -> Request | None:
        """The next request once its head is there, None at the end of the connection. Raises BadRequest."""
        if not requests.ready:
            self._idle[client] = time.monotonic()
            if self.alive:
                # Even if it is here already: a sender who is quick enough would be served for ever, and nobody else.
                gevent.get_hub().wait(arrival)
            else:
                client.settimeout(LINGER_S)
            while not requests.ready and requests.error is None:
                data = client.recv(READ_BYTES)
                if not data:
                    return None
                requests.feed(data)
            self._idle.pop(client, None)
        if requests.ready:
            return requests.ready.popleft()
        raise requests.error or BadRequest(400, "Bad Request")

    def _answer(
        self,
        request: Request,
        reply: Reply,
        requests: Requests,
        client: socket.socket,
        surroundings: dict[str, Any],
    ) -> bool:
        """Have the application answer; False when the connection is of no more use."""
        environ = request.environ
        environ.update(surroundings)
        environ["wsgi.input"] = Body(request, requests, client)
        try:
            body = self.wsgi(environ, reply.start)
            try:
                reply.write_all(body)
            finally:
                close = getattr(body, "close", None)
                if close is not None:
                    close()
        except OSError:
            raise
        except Exception as error:
            log.error("request failed", error=type(error).__name__, exc_info=error)
            if not reply.sent:
                util.write_error(client, 500, "Internal Server Error", "")
            return False
        return True

    def _linger(self, client: socket.socket) -> None:
        """The rest of a request that is not wanted: closed at once, its arrival would tear down the answer as well.

        Ref: nginx's lingering_close.
        """
        client.shutdown(socket.SHUT_WR)
        client.settimeout(LINGER_S)
        until = time.monotonic() + LINGER_S
        while time.monotonic() < until and client.recv(READ_BYTES):
            pass

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.alive:
            gevent.spawn_later(LINGER_S, self._close_idle)
        super().handle_exit(sig, frame)

    def _sweep(self) -> None:
        """Close what has been kept for too long."""
        while True:
            gevent.sleep(SWEEP_S)
            before = time.monotonic() - self.cfg.keepalive
            self._wake([client for client, since in self._idle.items() if since <= before])

    def _close_idle(self) -> None:
        self._wake(list(self._idle))

    def _wake(self, clients: list[socket.socket]) -> None:
        for client in clients:
            # Who reads from it finds its end, and closes it. Past gevent, whose shutdown wakes him with an error instead.
            with contextlib.suppress(OSError):
                client._sock.shutdown(socket.SHUT_RD)  # type: ignore[attr-defined]
