"""A small real HTTP server whose behaviour a test scripts; it remembers every request."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from discovery import Instance


@dataclass
class Seen:
    """One request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Upstream:
    """`behave(handler)` answers a request: `handler.seen` is what came."""

    port: int
    behave: Callable[[Handler], None]
    requests: list[Seen] = field(default_factory=list)
    connections: int = 0
    service: str = ""  # what it says at its health, when it is asked as the edge asks
    open: set[socket.socket] = field(default_factory=set)

    def instance(self, service: str = "users", **fields: object) -> Instance:
        """This server as an instance of a service."""
        values: dict[str, object] = {"id": f"{service}-{self.port}", "node": "node-1", "address": "127.0.0.1"}
        return Instance(service=service, port=self.port, **(values | fields))  # type: ignore[arg-type]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: Upstream
    seen: Seen

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.upstream.connections += 1
        self.upstream.open.add(self.connection)

    def finish(self) -> None:
        self.upstream.open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if self.upstream.service and headers.get("user-agent") == "edge-check":
            self.answer(X_Service=self.upstream.service)
            return
        self.seen = Seen(self.command, self.path, headers, self._body(headers))
        self.upstream.requests.append(self.seen)
        self.upstream.behave(self)

    def _body(self, headers: dict[str, str]) -> bytes:
        if "x-live" in headers:
            return b""
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(headers.get("content-length", "0")))
        return b"".join(iter(self.piece, b""))

    def piece(self) -> bytes:
        """The next chunk of a body that comes by chunks: empty at its end, and where it breaks off. Those of a request with an
        `X-Live` are left to `behave`."""
        size = int(self.rfile.readline() or b"0", 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _handle

    def answer(self, status: int = 200, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin_chunks(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def hang_up(self) -> None:
        """Close without another byte."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the tests."""


def ok(handler: Handler) -> None:
    handler.answer()


@contextlib.contextmanager
def upstream(
    behave: Callable[[Handler], None] = ok, port: int = 0, host: str = "127.0.0.1"
) -> Iterator[Upstream]:
    """A server on a free loopback port (or `port`). In the end it hangs up, as a process that ends does."""
    record = Upstream(0, behave)
    server = _Server((host, port), type("Bound", (Handler,), {"upstream": record}))
    record.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield record
    finally:
        server.shutdown()
        server.server_close()
        for connection in list(record.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)
