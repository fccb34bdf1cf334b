"""Writes HAProxy's log to a file: HAProxy keeps its lines in a ring, and the ring sends them over a Unix socket.

On stdout each line is a write of HAProxy's, and wakes the supervisor that copies it. The ring's lines come many at a time.
While no controller reads, the ring holds what fits into it; one that is killed loses what it has not read (`PAUSE_S`).
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from functools import partial
from pathlib import Path

from haproxy.controller.loop.steady import Health, survives

MAX_BYTES = 10_000_000
"""How large a file gets before the next one is begun. Two former ones are kept."""

READ_BYTES = 262_144
PAUSE_S = 0.01
"""Between two looks, so that under load lines are read by the thousand; HAProxy's ring holds what comes meanwhile."""


class RequestLog:
    """Listens on `path`, a Unix stream socket, and appends each line to `file`. A full file becomes `file.1`, and that `file.2`.

    A worker that is leaving and its successor are heard beside each other; lines stay whole. What cannot be written (a full
    disk) is lost, and `health` says so until a write succeeds. `start` raises OSError.
    """

    def __init__(self, path: Path, file: Path, health: Health, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._file = file
        self._health = health
        self._max_bytes = max_bytes
        self._selector = selectors.DefaultSelector()
        self._halves: dict[socket.socket, bytes] = {}
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)

    def start(self) -> None:
        """Listen and read from now on, in a thread."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        listener.listen()
        self._selector.register(listener, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Write what has come, and end, within 2 s."""
        self._stopped = True
        if self._thread.ident is not None:
            self._thread.join(2)

    def _run(self) -> None:
        with self._selector:
            while not self._stopped:
                self._turn(0.5)
                time.sleep(PAUSE_S)
            self._turn(0)
            for key in list(self._selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    def _turn(self, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            one: socket.socket = key.fileobj  # type: ignore[assignment]
            survives(
                "request log", partial(self._read if one in self._halves else self._accept, one), self._health
            )

    def _accept(self, listener: socket.socket) -> None:
        one, _ = listener.accept()
        self._halves[one] = b""
        self._selector.register(one, selectors.EVENT_READ)

    def _read(self, one: socket.socket) -> None:
        data = one.recv(READ_BYTES)
        if not data:
            self._selector.unregister(one)
            one.close()
            self._append(self._halves.pop(one))
            return
        whole, newline, self._halves[one] = (self._halves[one] + data).rpartition(b"\n")
        self._append(whole + newline)

    def _append(self, lines: bytes) -> None:
        if not lines:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._file.stat().st_size + len(lines) > self._max_bytes:
                for number in (1, 0):
                    with contextlib.suppress(FileNotFoundError):
                        self._numbered(number).replace(self._numbered(number + 1))
        with self._file.open("ab", buffering=0) as file:
            file.write(lines)

    def _numbered(self, number: int) -> Path:
        return self._file.with_name(f"{self._file.name}.{number}") if number else self._file
