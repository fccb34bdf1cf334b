"""gunicorn's workers, made to end well: see `docs/adr/0007-worker-model.md` for which is used when."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import structlog
from gunicorn import util
from gunicorn.http.body import Body, EOFReader, LengthReader
from gunicorn.http.errors import InvalidHeader
from gunicorn.http.message import Request as _Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import ThreadWorker as _ThreadWorker

from services.kit.web import context

log = structlog.get_logger(__name__)

PR_SET_PDEATHSIG = 1
# As gunicorn's gthread: for a request that a client may already be sending on a connection that it keeps.
LINGER_S = 2.0
READ_BYTES = 64 * 1024
# gunicorn's own bound is fields times their size, 3 MB here, and it looks through all of it with each packet.
HEAD_BYTES = 64 * 1024


def bind_to_master(master_pid: int) -> None:
    """Called in the worker: die at once when the master dies, however that happens, so that the port is free again.

    Its own process group keeps a Ctrl-C in a terminal, or a stop signal to the whole group, from the worker: the
    master alone decides when it ends.
    """
    os.setpgid(0, 0)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != master_pid:
        os.kill(os.getpid(), signal.SIGKILL)


# By status, for what gunicorn refuses before it is a request: its own texts repeat what was sent.
_DETAILS = {
    414: "The target of the request is too long.",
    417: "The only expectation that is supported is 100-continue.",
    431: "The header fields are too many or too long.",
    500: None,
    501: "This transfer coding is not supported.",
}


def refusals(service: str) -> Callable[[socket.socket, int, str, str], None]:
    """In place of gunicorn's `util.write_error`, which answers in HTML what never becomes a request for the application:
    too many headers, an unknown transfer coding. What it says of it is in its log."""

    def write(connection: socket.socket, status: int, reason: str, _: str) -> None:
        request_id = context.request_id(None)
        members = {
            "type": "about:blank",
            "title": reason,
            "status": status,
            "detail": _DETAILS.get(status, "This is not a well-formed request."),
            "instance": "",
            "request_id": request_id,
            "layer": "service",
            "service": service,
        }
        log.info("refused before it was a request", status=status, request_id=request_id)
        body = json.dumps(members).encode()
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
            f"Cache-Control: no-store\r\nX-Request-ID: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        util.write_nonblock(connection, head.encode("latin-1") + body)
        linger(connection)

    return write


def linger(client: socket.socket) -> None:
    """Close a connection so that the answer arrives: after what is still coming, or `LINGER_S`.

    Closed at once, the arrival of a rest that is not read would tear down the answer as well.
    Ref: RFC 9112, section 9.6; nginx's lingering_close.
    """
    with contextlib.suppress(OSError), client:
        client.shutdown(socket.SHUT_WR)
        until = time.monotonic() + LINGER_S
        while (left_s := until - time.monotonic()) > 0:
            client.settimeout(left_s)
            if not client.recv(READ_BYTES):
                break
            time.sleep(0)  # a greenlet that never waits would hold up all others


class Request(_Request):
    """gunicorn's request with bounds for its head as a whole, in bytes (for its trailers too) and in time, and with the Host that
    HTTP/1.1 asks for."""

    # From its first byte on. Set before the fork.
    head_within_s = 10.0
    body: Body

    def parse(self, unreader: Any) -> Any:
        self.max_buffer_headers = HEAD_BYTES
        self._until = 0.0
        unused = super().parse(unreader)
        unreader.sock.settimeout(None)
        return unused

    def read_into(self, unreader: Any, buf: bytearray, stop: bool = False) -> None:
        if stop:  # the wait for a request is the worker's to bound
            super().read_into(unreader, buf, stop)
            self._until = time.monotonic() + self.head_within_s
        else:
            unreader.sock.settimeout(max(0.001, self._until - time.monotonic()))
            super().read_into(unreader, buf)

    def set_body_reader(self) -> None:
        if self.version >= (1, 1) and not any(name == "HOST" for name, _ in self.headers):
            raise InvalidHeader("HOST", req=self)
        super().set_body_reader()
        if isinstance(self.body.reader, EOFReader):
            # Without a length there is none, but the original would read on to the end of the connection.
            self.body = Body(LengthReader(self.unreader, 0))


class Unreader(SocketUnreader):
    """Gives way before each read: a client that always has more to send would else hold up all other greenlets."""

    def chunk(self, size_hint: int | None = None) -> Any:
        time.sleep(0)
        return super().chunk(size_hint)


class Parser(RequestParser):
    """gunicorn's parser of one connection; what a view left unread of a body is read for `LINGER_S` at most."""

    mesg_class = Request

    def __init__(self, cfg: Any, source: socket.socket, source_addr: Any) -> None:
        super().__init__(cfg, source, source_addr)
        self.unreader = Unreader(source)

    def finish_body(self, deadline: float | None = None, max_bytes: int | None = None) -> bool:
        """False where the connection has to end. Also where the rest is broken: the refusal would follow an answer, and
        be taken for the next request's."""
        try:
            return bool(super().finish_body(deadline or time.monotonic() + LINGER_S, max_bytes))
        except Exception:
            return False


class ThreadWorker(_ThreadWorker):
    """gthread that, when it is to stop, serves what its backlog holds and then closes the port; and closes without holding up others.

    The original keeps the socket open, unserved, until its last request has ended: a client that connects then hangs. And it
    waits for up to 2 s for each client to close, in the thread that accepts.
    """

    sockets: list[Any]

    def handle(self, conn: Any) -> Any:
        more = super().handle(conn)
        if more is False and conn.parser is not None and not conn.parser.finish_body():
            linger(conn.sock)
        return more

    def finish_request(self, conn: Any, fs: Any) -> None:
        if not fs.cancelled() and fs.exception() is None and fs.result() is False:
            self.nr_conns -= 1
            conn.close()
        else:
            super().finish_request(conn, fs)

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if enabled or self.alive:
            return
        for listener in self.sockets:
            waiting = 0
            while waiting != self.nr_conns:
                waiting = self.nr_conns
                self.accept(listener)
            listener.close()
        self.sockets = []
