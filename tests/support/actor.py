"""A tiny service whose behaviour a test changes while it runs: it stands in for instances that misbehave."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GUEST_HOST = "TEST_GUEST_HOST"
"""The variable in which a fleet of containers says where its servers find programs of this machine."""


def guest_host() -> str:
    """The address on which the fleet finds what a test runs itself."""
    return os.environ.get(GUEST_HOST, "127.0.0.1")


@dataclass
class Actor:
    """An HTTP server, on loopback where the fleet is processes. Change its fields at any time; `requests` counts what is not a
    health check."""

    service: str
    instance_id: str
    port: int = 0
    host: str = field(default_factory=guest_host)
    ready: bool = True
    status: int = 200
    delay_s: float = 0.0
    body: bytes = b'{"data":{"from":"actor"}}'
    requests: int = 0
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    _server: ThreadingHTTPServer | None = None
    _open: set[socket.socket] = field(default_factory=set)

    def listen(self) -> None:
        """Begin to listen, on `port` or, where that is 0, on a free one."""
        actor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body leave together

            def setup(self) -> None:
                super().setup()
                actor._open.add(self.connection)

            def finish(self) -> None:
                actor._open.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path.startswith("/health/"):
                    actor._health(self)
                else:
                    actor._answer(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A peer that leaves is nothing to tell."""

        self._server = Server((self.host, self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening and hang up, as a process that ends does."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _health(self, handler: BaseHTTPRequestHandler) -> None:
        _send(handler, 200 if self.ready else 503, b"{}", {"X-Service": self.service})

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests += 1
        if len(self.seen) < 1000:
            self.seen.append(
                (handler.command, handler.path, {k.lower(): v for k, v in handler.headers.items()})
            )
        time.sleep(self.delay_s)
        _send(handler, self.status, self.body, {})


def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in (
        {"Content-Type": "application/json", "Content-Length": str(len(body))} | headers
    ).items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
    handler.wfile.flush()


@contextlib.contextmanager
def actor(service: str, instance_id: str, **fields: object) -> Iterator[Actor]:
    """An actor that listens."""
    one = Actor(service, instance_id, **fields)  # type: ignore[arg-type]
    one.listen()
    try:
        yield one
    finally:
        one.close()
