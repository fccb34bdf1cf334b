"""Many small GETs down one kept connection: a thousand through `requests` cost 0.7 s of processor. Knows HTTP only, not Consul."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from discovery.clock import SYSTEM_CLOCK
from discovery.errors import ConsulUnreachable
from discovery.http.answer import BadAnswer
from discovery.http.connection import Connection, connect
from discovery.http.headers import Headers

MAX_BODY_BYTES = 64 * 1024 * 1024


class Reader:
    """One connection, used by one thread at a time. Loopback or trusted networks only: no TLS. Raises ConsulUnreachable."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        headers: Mapping[str, str],
    ) -> None:
        self._address = (host, port)
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        lines = {"Host": f"{host}:{port}", "Accept": "application/json", **headers}
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._lock = threading.Lock()
        self._kept: Connection | None = None

    def get(self, path: str) -> tuple[int, Headers, bytes]:
        """Status, headers and body of one answer, which may take `read_timeout_s`."""
        head = f"GET {path} HTTP/1.1\r\n{self._fields}\r\n".encode()
        with self._lock:
            kept, self._kept = self._kept, None
            if kept is not None and kept.quiet():
                try:
                    return self._exchange(kept, head)
                except TimeoutError as error:
                    raise _unreachable(error) from error
                except (OSError, BadAnswer):  # closed just when it was used
                    kept.close()
            elif kept is not None:
                kept.close()
            try:
                return self._exchange(
                    Connection(connect(*self._address, self._connect_timeout_s), SYSTEM_CLOCK), head
                )
            except (OSError, ValueError, BadAnswer) as error:
                raise _unreachable(error) from error

    def _exchange(self, connection: Connection, head: bytes) -> tuple[int, Headers, bytes]:
        until = SYSTEM_CLOCK.monotonic() + self._read_timeout_s
        answer, size, pieces = None, 0, []
        try:
            connection.ask(head, None, None, head_only=False, until=until)
            answer = connection.answer
            while piece := connection.piece(until):
                size += len(piece)
                if size > MAX_BODY_BYTES:
                    raise BadAnswer("the body is too long")
                pieces.append(piece)
        finally:
            if answer is not None and answer.reusable:
                self._kept = connection
            else:
                connection.close()
        return answer.status, answer.headers, b"".join(pieces)

    def close(self) -> None:
        """Give the connection back; the next use opens another."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()


def _unreachable(error: Exception) -> ConsulUnreachable:
    return ConsulUnreachable(f"{type(error).__name__}: {error}")
