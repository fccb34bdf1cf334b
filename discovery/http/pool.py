"""The idle connections to one address."""

from __future__ import annotations

import contextlib
from collections import deque

from discovery.clock import Clock
from discovery.http.connection import Connection

# Less than nginx (75 s) keeps its own; where the other side closes earlier it is noticed before the next use.
IDLE_S = 60.0
# Many servers close after two seconds or five: between that and our notice lies a moment in which a request is lost.
FRESH_S = 1.0
Address = tuple[str, int]


class Pool:
    """The idle connections to one address, the last used on top. Thread-safe without a lock: a deque's ends are atomic."""

    def __init__(self, address: Address, limit: int, clock: Clock) -> None:
        host, port = address
        self.address = address
        shown = f"[{host.partition('%')[0]}]" if ":" in host else host
        self.host_line = f"Host: {shown}:{port}\r\n".encode("latin-1", "replace")
        self.closed = False
        self.identified_at = float("-inf")  # when an instance there last named its service
        self._limit = limit
        self._clock = clock
        self._idle: deque[Connection] = deque()

    def take(self, *, fresh: bool) -> Connection | None:
        """An idle connection that still stands. `fresh`: used a moment ago, for what must not be lost."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if fresh and self._clock.monotonic() - connection.idle_since > FRESH_S:
                self._idle.append(connection)
                return None
            if connection.quiet():
                return connection
            connection.close()

    def give(self, connection: Connection) -> None:
        """Take back a connection whose exchange is over."""
        if not connection.reusable or len(self._idle) >= self._limit:
            connection.close()
            return
        connection.kept = True
        connection.idle_since = self._clock.monotonic()
        self._idle.append(connection)
        if self.closed:  # asked last: it may just have happened
            self.close()

    def sweep(self, idle_s: float = IDLE_S) -> None:
        """Close what has been idle for so long."""
        until = self._clock.monotonic() - idle_s
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.popleft()
                if connection.idle_since > until:
                    self._idle.appendleft(connection)
                    return
                connection.close()

    def close(self) -> None:
        self.closed = True
        self.sweep(-1.0)
