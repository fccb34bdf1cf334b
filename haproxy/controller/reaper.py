"""Ending the requests that a server still holds which has gone down: it hangs, and its clients shall not hang with it.

HAProxy can do so itself (`on-marked-down shutdown-sessions`), but does it in the moment in which the server goes down, and to
requests too that are only just *connecting* to it: those end without an answer in place of being tried elsewhere. Measured
with 2.6: one of two servers cut off from the network under 200 requests/s lost 29 of them. So they are ended a
moment later, when none can be connecting any more. HAProxy tells of servers that go down in a log line of its own.
"""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from haproxy.controller.errors import BadWord, Unreachable
from haproxy.controller.runtime import Runtime, command

log = structlog.get_logger(__name__)

# Twice `timeout connect` of the template: one attempt, and the pause that HAProxy may put before it is made elsewhere.
AFTER_S = 0.7
_DOWN = re.compile(rb"Server ([^/\s]+)/(\S+) is DOWN")
_IDLE_S = 1.0
# Far more servers than an edge has; what is told beyond them waits for its timeouts.
_MAX_DUE = 20_000


def gone_down(line: bytes) -> tuple[str, str] | None:
    """Backend and server of a log line that says that one has gone down; None for any other line."""
    found = _DOWN.search(line)
    return (found[1].decode(errors="replace"), found[2].decode(errors="replace")) if found else None


class Reaper:
    """Hears of servers that go down, on a thread of its own, and ends what is left of their requests `AFTER_S` later."""

    def __init__(self, events: Path, runtime: Runtime, clock: Clock = SYSTEM_CLOCK) -> None:
        self._events = events
        self._runtime = runtime
        self._clock = clock
        self._due: dict[tuple[str, str], float] = {}  # in the order of their times
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def start(self) -> None:
        """Raises OSError when the socket cannot be made."""
        self._events.unlink(missing_ok=True)
        self._socket.bind(str(self._events))
        self._events.chmod(0o600)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self._socket.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._hear()
            now = self._clock.monotonic()
            due = [server for server, at in self._due.items() if at <= now]
            for server in due:
                del self._due[server]
            self._reap(due)

    def _hear(self) -> None:
        """Wait for a line, or until something is due."""
        first = next(iter(self._due.values()), float("inf"))
        self._socket.settimeout(min(max(first - self._clock.monotonic(), 0.001), _IDLE_S))
        try:
            server = gone_down(self._socket.recv(2048))
        except OSError:
            return
        if server is not None and len(self._due) < _MAX_DUE:
            self._due.setdefault(server, self._clock.monotonic() + AFTER_S)

    def _reap(self, servers: list[tuple[str, str]]) -> None:
        if not servers:
            return
        try:
            with self._runtime.session() as session:
                for backend, server in servers:
                    # One that is up again answers what it has. One that is ordered to drain meanwhile still hangs.
                    if session.statuses(backend).get(server, "UP").startswith("UP"):
                        continue
                    session.send(command("shutdown", "sessions", "server", f"{backend}/{server}"))
                    log.info(
                        "requests of a server that is down are ended", backend=backend, server=server[:63]
                    )
        except (Unreachable, BadWord) as error:  # another worker has none of these requests
            log.info("requests of servers that are down are left", error=str(error))
