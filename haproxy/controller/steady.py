"""Threads that outlive whatever their work raises, and what of the controller is not well."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from discovery.errors import DiscoveryError
from haproxy.controller.errors import EdgeError

log = structlog.get_logger(__name__)

# An error that comes back at once must not make its thread spin.
PAUSE_S = 1.0


class Health:
    """What is wrong now, by part. Thread-safe; a problem is logged when it begins, when it becomes another one, and when it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._problems: dict[str, str] = {}

    def wrong(self, part: str, problem: str) -> bool:
        """Answers whether it is news."""
        with self._lock:
            news = self._problems.get(part) != problem
            self._problems[part] = problem
            return news

    def well(self, part: str) -> None:
        with self._lock:
            ended = self._problems.pop(part, None)
        if ended is not None:
            log.info("works again", part=part, problem=ended)

    def problems(self) -> dict[str, str]:
        with self._lock:
            return dict(self._problems)


class Steady:
    """Runs `turn` again and again on a daemon thread of its own, until `stop`.

    An exception that gets out of it ends that turn and no more: it shows in `health` under the thread's name until a turn
    ends well. `stop` wakes nobody up: what `turn` waits for is its own.
    """

    def __init__(self, name: str, turn: Callable[[], None], health: Health) -> None:
        self._name = name
        self._turn = turn
        self._health = health
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def join(self, timeout_s: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout=timeout_s)

    def wait(self, seconds: float) -> bool:
        """Sleep, or until `stop`; answers whether that has come."""
        return self._stopped.wait(seconds)

    def _run(self) -> None:
        while not self._stopped.is_set():
            if not survives(self._name, self._turn, self._health):
                self._stopped.wait(PAUSE_S)


def survives(part: str, work: Callable[[], None], health: Health) -> bool:
    """Do the work; answers whether it ended without an exception. One that it raises shows in `health`, and is logged once."""
    try:
        work()
    except Exception as error:  # whatever it is, the next turn may do better
        if health.wrong(part, str(error)[:500] or repr(error)):
            foreseen = isinstance(error, (EdgeError, DiscoveryError, OSError))
            log.error("failed, goes on", part=part, error=repr(error), exc_info=not foreseen)
        return False
    health.well(part)
    return True
