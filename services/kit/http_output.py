"""A WSGI answer as bytes on one connection: the head with the first piece of the body in one packet, framed as it must be."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any

from services.kit.http_input import Request

# A piece up to this length goes out together with the head: a copy is cheaper than a packet.
JOINED_BYTES = 16 * 1024
# RFC 9110, section 7.6.1: of one connection, and this one is ours.
_HOPS = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailers",
        "transfer-encoding",
        "upgrade",
    }
)


class _Date:
    """The Date header's value, made once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def __call__(self) -> str:
        now = int(time.time())
        if now != self._second:
            self._second, self._text = now, formatdate(now, usegmt=True)
        return self._text


_date = _Date()


class Reply:
    """One answer. `keep` tells, once it is over, whether the connection can be used again; `may_keep` is asked when its head is
    made."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_head",
        "_left",
        "_may_keep",
        "_silent",
        "keep",
        "request",
        "sent",
        "status",
    )

    def __init__(self, request: Request, connection: socket.socket, may_keep: Callable[[], bool]) -> None:
        self.request = request
        self.keep = request.keep
        self._may_keep = may_keep
        self.status = 0
        self.sent = False
        self._connection = connection
        self._head = b""
        self._left: int | None = None
        self._chunked = False
        self._silent = False

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """WSGI's start_response. Raises ValueError for a head that would be two."""
        if exc_info is not None and self.sent:
            try:
                raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        self.status = int(status[:3])
        self._silent = self.request.method == "HEAD" or self.status < 200 or self.status in (204, 304)
        self._left = None
        lines = [f"HTTP/1.1 {status}", f"Date: {_date()}"]
        for name, value in headers:
            lower = name.lower()
            if lower == "content-length":
                self._left = int(value)
                if self.status == 204 or self.status < 200:
                    continue
            elif lower in _HOPS:
                continue
            lines.append(f"{name}: {value}")
        self._frame(lines)
        head = "\r\n".join(lines)
        if head.count("\r") != len(lines) - 1 or head.count("\n") != len(lines) - 1 or "\0" in head:
            raise ValueError("a header holds a line break")
        self._head = f"{head}\r\n\r\n".encode("latin-1")
        return self.write

    def _frame(self, lines: list[str]) -> None:
        self._chunked = self._left is None and not self._silent and self.request.version == "1.1"
        if self._chunked:
            lines.append("Transfer-Encoding: chunked")
        elif self._left is None and not self._silent:
            self.keep = False
        if not self.keep or not self._may_keep():
            self.keep = False
            lines.append("Connection: close")
        elif self.request.version == "1.0":
            lines.append("Connection: keep-alive")

    def write(self, data: bytes) -> None:
        """The next piece of the body. What is more than was announced is not sent."""
        if not data and self.sent:
            return
        if self._silent:
            data = b""
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        elif self._left is not None:
            data = data if len(data) <= self._left else data[: self._left]
            self._left -= len(data)
        self._send(data)

    def _send(self, data: bytes) -> None:
        if not self.sent:
            if not self._head:
                raise RuntimeError("the application did not begin an answer")
            self.sent = True
            if len(data) <= JOINED_BYTES:
                self._connection.sendall(self._head + data)
                return
            self._connection.sendall(self._head)
        if data:
            self._connection.sendall(data)

    def write_all(self, body: Iterable[bytes]) -> None:
        """All of a body, and its end."""
        for piece in body:
            if piece:
                self.write(piece)
        self._send(b"0\r\n\r\n" if self._chunked else b"")
        if self._left and not self._silent:
            self.keep = False  # shorter than announced: nothing may follow
