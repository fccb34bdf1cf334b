"""What is wrong in the controller, and work that survives whatever it raises."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from discovery.errors import DiscoveryError
from discovery.loop import Loop
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
        """Returns whether it is news."""
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


def steady(name: str, turn: Callable[[], float], health: Health) -> Loop:
    """A loop that runs `turn`, and whose failures show in `health` under its name until a turn ends well."""

    def watched() -> float:
        try:
            pause_s = turn()
        except Exception as error:
            health.wrong(name, str(error)[:500] or repr(error))
            raise
        health.well(name)
        return pause_s

    return Loop(name, watched)


def survives(part: str, work: Callable[[], object], health: Health) -> bool:
    """Do the work; returns whether it ended without an exception. An exception shows in `health`, and is logged once."""
    try:
        work()
    except Exception as error:  # whatever it is, the next turn may do better
        if health.wrong(part, str(error)[:500] or repr(error)):
            foreseen = isinstance(error, (EdgeError, DiscoveryError, OSError))
            log.error("failed, goes on", part=part, error=repr(error), exc_info=not foreseen)
        return False
    health.well(part)
    return True
