"""Notices that whoever asked has gone while his request waits, so that nothing is done for nobody.

A server that waits for an upstream looks at its client only when it writes. So the connections of those who wait longer than a
moment are looked at by one greenlet, with one system call for all of them.
"""

from __future__ import annotations

import select
import socket
import time
from typing import Any

import gevent
from gevent.monkey import get_original

from discovery.loop import Loop
from gateway.errors import ClientGone

# Looked at this often, and not before having waited as long: most answers are there sooner.
EVERY_S = 0.1
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
# gevent's own poll would make a watcher in its loop for each connection.
_poll = get_original("select", "poll")


class Wait:
    """One stay of one greenlet at a place where it may be interrupted."""

    __slots__ = ("connection", "greenlet", "since")

    def __init__(self, connection: socket.socket, greenlet: Any) -> None:
        self.connection = connection
        self.greenlet = greenlet
        self.since = time.monotonic()


class Departures:
    """Raises ClientGone in greenlets whose client has left, between `begin` and `end` and nowhere else."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._waits: dict[int, Wait] = {}

    def start(self) -> None:
        """Begin to look. Called in the worker."""
        gevent.spawn(Loop("departures", self._turn).run)

    def begin(self, connection: socket.socket) -> Wait:
        """From here on this greenlet may meet ClientGone. `end` must follow, whatever happens."""
        wait = Wait(connection, gevent.getcurrent())
        self._waits[id(wait)] = wait
        return wait

    def end(self, wait: Wait) -> None:
        self._waits.pop(id(wait), None)

    def _turn(self) -> float:
        if self._waits:
            self._look(time.monotonic() - self._every_s)
        return self._every_s

    def _look(self, before: float) -> None:
        by_fd: dict[int, Wait] = {}
        poll = _poll()
        for wait in self._waits.values():
            fd = wait.connection.fileno() if wait.since <= before else -1
            if fd >= 0:
                by_fd[fd] = wait
                poll.register(fd, select.POLLRDHUP)
        for fd, events in poll.poll(0) if by_fd else ():
            if events & _GONE:
                # In the loop's own turn: this greenlet must not be the parent of what it interrupts.
                gevent.get_hub().loop.run_callback(self._interrupt, by_fd[fd])

    def _interrupt(self, wait: Wait) -> None:
        # It may have gone on since.
        if self._waits.pop(id(wait), None) is not None:
            wait.greenlet.throw(ClientGone())
