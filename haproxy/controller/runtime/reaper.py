"""Ending the requests that a server still holds which has gone down: it hangs, and its clients should not hang with it.

HAProxy can do so itself (`on-marked-down shutdown-sessions`), but does it in the moment in which the server goes down, and to
requests too that are only just *connecting* to it: those end without an answer in place of being tried elsewhere. Measured
with 2.6: one of two servers cut off from the network under 200 requests/s lost 29 of them. So they are ended a moment
later, when none can be connecting any more. Which server goes down, HAProxy notes in a ring buffer, which is followed here (a socket for
datagrams, the other way to hear of it, takes ten lines at a time).
Ref: https://docs.haproxy.org/2.6/management.html#9.3-show%20events
"""

from __future__ import annotations

import contextlib
import re
from itertools import groupby

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from haproxy.controller.config.template import DOWNS
from haproxy.controller.errors import Unreachable
from haproxy.controller.loop.steady import Health, steady
from haproxy.controller.runtime.socket import Runtime, command

log = structlog.get_logger(__name__)

# Twice `timeout connect` of the template: one attempt, and the pause that HAProxy may put before it is made elsewhere.
AFTER_S = 0.7
LOOK_EVERY_S = 0.15
RETRY_S = 0.5
# From its first letter on: the reason at its end may be in the words of the service.
_DOWN = re.compile(r"(?:Backup )?Server ([A-Za-z0-9_.-]+)/([A-Za-z0-9_.:@-]+) is DOWN\b")


def gone_down(line: str) -> tuple[str, str] | None:
    """Backend and server of a log line that says that one has gone down; None for any other line."""
    found = _DOWN.match(line)
    return (found[1], found[2]) if found else None


class Reaper:
    """Hears of servers that go down, on a thread of its own, and ends what is left of their requests `AFTER_S` later."""

    def __init__(self, runtime: Runtime, health: Health, clock: Clock = SYSTEM_CLOCK) -> None:
        self._runtime = runtime
        self._clock = clock
        self._due: dict[
            tuple[str, str], float
        ] = {}  # server → when to look at it, in the order of these times
        self._loop = steady("reaper", self._turn, health)

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        self._loop.stop()
        self._loop.join(5)

    @property
    def busy(self) -> bool:
        """Whether a server has just gone down whose requests are still to be ended: in another worker they cannot be."""
        return bool(self._due)

    def _turn(self) -> float:
        try:
            self._follow()
        except Unreachable as error:
            log.debug("servers that go down are not heard of", error=str(error))
        finally:
            self._due.clear()
        return RETRY_S

    def _follow(self) -> None:
        """Until the worker is another one, or is to end: it waits for every client that is still connected to it.

        The buffer holds what happened before, too: a server without requests has none to lose.
        """
        worker, looked = self._runtime.info(), self._clock.monotonic()
        events = self._runtime.follow(command("show", "events", DOWNS, "-w"), LOOK_EVERY_S)
        with contextlib.closing(events):
            for line in events:
                server, now = gone_down(line or ""), self._clock.monotonic()
                if server is not None:
                    self._due.pop(server, None)  # one that flaps is down from now on
                    self._due[server] = now + AFTER_S
                self._reap(self._take_due(now))
                if self._loop.stopped:
                    return
                if now - looked >= LOOK_EVERY_S:
                    # One that is to end takes no new connections.
                    if self._runtime.info() != worker:
                        return
                    looked = now

    def _take_due(self, now: float) -> list[tuple[str, str]]:
        taken = []
        while self._due and next(iter(self._due.values())) <= now:
            server = next(iter(self._due))
            del self._due[server]
            taken.append(server)
        return taken

    def _reap(self, servers: list[tuple[str, str]]) -> None:
        if not servers:
            return
        with self._runtime.session() as session:
            for backend, group in groupby(sorted(servers), lambda server: server[0]):
                seen = session.servers(backend) or {}
                for _, name in group:
                    # One that is up again answers what it has. One that is ordered to drain meanwhile still hangs.
                    if name not in seen or seen[name].up or not seen[name].sessions:
                        continue
                    session.send(command("shutdown", "sessions", "server", f"{backend}/{name}"))
                    log.info(
                        "requests of a server that is down are ended",
                        backend=backend,
                        server=name,
                        count=seen[name].sessions,
                    )
