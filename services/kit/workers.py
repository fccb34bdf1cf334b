"""gunicorn's workers, made to end well: see `docs/adr/0007-worker-model.md` for which is used when."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
from collections.abc import Callable

from gunicorn import util
from gunicorn.workers.gthread import ThreadWorker as _ThreadWorker

PR_SET_PDEATHSIG = 1


def bind_to_master(master_pid: int) -> None:
    """Called in the worker: die at once when the master dies, however that happens, so that the port is free again.

    Its own process group keeps a Ctrl-C in a terminal, or a stop signal to the whole group, from the worker: the
    master alone decides when it ends.
    """
    os.setpgid(0, 0)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != master_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def refusals(service: str) -> Callable[[socket.socket, int, str, str], None]:
    """In place of gunicorn's `util.write_error`, which answers in HTML what never becomes a request for the application:
    too many headers, an unknown transfer coding. The detail is left to the log: it repeats what was sent."""

    def write(connection: socket.socket, status: int, reason: str, _: str) -> None:
        members = {"type": "about:blank", "title": reason, "status": status, "layer": "service"}
        body = json.dumps({**members, "service": service}).encode()
        head = (
            f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
            f"Cache-Control: no-store\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        util.write_nonblock(connection, head.encode("latin-1") + body)

    return write


class ThreadWorker(_ThreadWorker):
    """gthread that, told to stop, serves what its backlog holds and then closes the port.

    The original keeps the socket open, unserved, until its last request has ended: whoever connects then hangs.
    """

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
