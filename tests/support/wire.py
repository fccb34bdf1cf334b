"""One keep-alive HTTP/1.1 connection on a bare socket, which knows whether any byte of an answer has come."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass, field


class WireError(Exception):
    """No whole answer. `kind`: connect, timeout, reset, closed or malformed; `started`: a byte of it had come.

    `status` and `headers` are those of the answer when its head was whole, else 0 and empty.
    """

    def __init__(self, kind: str, *, started: bool, status: int = 0, headers: dict[str, str] | None = None):
        self.kind = kind
        self.started = started
        self.status = status
        self.headers = headers or {}
        super().__init__(f"{kind} ({'after' if started else 'before'} the first byte)")


@dataclass(slots=True)
class Reply:
    """A whole answer. Header names are in lower case; of a repeated one the last value is kept."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Wire:
    """Not for several threads. After an error or a `Connection: close` the next exchange connects anew."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._address = (host, port)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._deadline = 0.0
        self.connects = 0

    def exchange(self, request: bytes, *, head: bool = False) -> Reply:
        """Send the request and read its whole answer within the timeout. Raises WireError."""
        self._deadline = time.monotonic() + self._timeout_s
        self._buffer.clear()
        reply = Reply(0)
        try:
            self._send(request)
            self._read_head(reply)
            self._read_body(reply, head=head)
        except WireError as error:
            self.close()
            error.started = error.started or bool(self._buffer) or reply.status > 0
            error.status, error.headers = reply.status, reply.headers
            raise
        if reply.headers.get("connection", "").lower() == "close":
            self.close()
        return reply

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def _send(self, request: bytes) -> None:
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=self._timeout_s)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connects += 1
        except OSError as error:
            raise WireError("connect", started=False) from error
        try:
            self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
            self._socket.sendall(request)
        except TimeoutError as error:
            raise WireError("timeout", started=False) from error
        except OSError as error:
            raise WireError("reset", started=False) from error

    def _fill(self) -> None:
        """Read some more into the buffer; raises WireError at the end of the stream."""
        assert self._socket is not None
        try:
            self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
            data = self._socket.recv(65536)
        except TimeoutError as error:
            raise WireError("timeout", started=False) from error
        except OSError as error:
            raise WireError("reset", started=False) from error
        if not data:
            raise WireError("closed", started=False)
        self._buffer += data

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _read_head(self, reply: Reply) -> None:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            self._fill()
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        parts = first.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdigit():
            raise WireError("malformed", started=True)
        del self._buffer[: end + 4]
        for line in lines:
            name, _, value = line.partition(":")
            reply.headers[name.strip().lower()] = value.strip()
        reply.status = int(parts[1])

    def _read_body(self, reply: Reply, *, head: bool) -> None:
        if head or reply.status in (204, 304):
            return
        if reply.headers.get("transfer-encoding", "").lower() == "chunked":
            body = bytearray()
            while size := self._chunk_size():
                body += self._take(size + 2)[:size]
            while self._line():
                pass
            reply.body = bytes(body)
        elif "content-length" in reply.headers:
            reply.body = self._take(int(reply.headers["content-length"]))
        else:
            self._read_to_end(reply)

    def _chunk_size(self) -> int:
        try:
            return int(self._line().split(b";")[0], 16)
        except ValueError as error:
            raise WireError("malformed", started=True) from error

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _read_to_end(self, reply: Reply) -> None:
        try:
            while True:
                self._fill()
        except WireError as error:
            if error.kind != "closed":
                raise
        reply.body = bytes(self._buffer)
        self.close()
