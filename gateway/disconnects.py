"""Notices that a client has left while its request waits, so that no work is done for a connection that is closed.

A server that waits for an upstream looks at its client only when it writes. So the connections of requests that wait longer
than a moment are looked at by one greenlet, with one system call for all of them.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from contextlib import AbstractContextManager

import gevent
from gevent.monkey import get_original

from discovery.loop import Loop
from gateway.errors import ClientGone

# Looked at this often, and not before having waited as long: most answers are there sooner.
EVERY_S = 0.1
_GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL
# gevent's own poll would make a watcher in its loop for each connection.
_poll = get_original("select", "poll")
_UNWATCHED = contextlib.nullcontext()


class Wait:
    """One stay of one greenlet at a place where it may be interrupted."""

    __slots__ = ("_waits", "connection", "greenlet", "since")

    def __init__(self, waits: dict[int, Wait], connection: socket.socket) -> None:
        self._waits = waits
        self.connection = connection
        self.greenlet = gevent.getcurrent()
        self.since = time.monotonic()

    def __enter__(self) -> None:
        self._waits[id(self)] = self

    def __exit__(self, *_: object) -> None:
        self._waits.pop(id(self), None)


class Departures:
    """Raises ClientGone in greenlets whose client has left, within `watch` and nowhere else."""

    def __init__(self) -> None:
        self._waits: dict[int, Wait] = {}

    def start(self) -> None:
        """Begin to look. Called in the worker."""
        gevent.spawn(Loop("departures", self._turn).run)

    def watch(self, connection: socket.socket | None) -> AbstractContextManager[None]:
        """Within the context this greenlet may meet ClientGone; without a connection it does not."""
        return Wait(self._waits, connection) if connection is not None else _UNWATCHED

    def _turn(self) -> float:
        if self._waits:
            self._look(time.monotonic() - EVERY_S)
        return EVERY_S

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
