"""What runs for ever: a loop that outlives whatever its turns meet."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock

log = structlog.get_logger(__name__)

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0


def backoff_s(failures: int, clock: Clock) -> float:
    """Full jitter over an exponential bound. Ref: AWS, "Exponential Backoff and Jitter"."""
    return clock.random() * min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures, 16))


class Loop:
    """Calls `turn` until it is stopped; `turn` returns how long to pause (seconds).

    No exception ends it. One is logged when it begins to fail and not again before it went well in between; meanwhile
    `failing` is true, and the next turn comes after a growing pause. `turn` looks at `stopped` where it takes long.
    """

    def __init__(self, name: str, turn: Callable[[], float], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._name = name
        self._turn = turn
        self._clock = clock
        self._awake = threading.Event()  # ends a pause before its time
        self._failures = 0
        self._thread: threading.Thread | None = None
        self.stopped = False

    @property
    def failing(self) -> bool:
        """Whether the last turn ended in an exception."""
        return self._failures > 0

    def start(self) -> None:
        """Run on a daemon thread of its own."""
        self._thread = threading.Thread(target=self.run, name=self._name, daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Run here, for those that bring a thread or a greenlet of their own. Returns after `stop`."""
        while not self.stopped:
            self._awake.clear()
            pause_s = self.turn()
            if pause_s > 0 and not self.stopped:
                self._awake.wait(pause_s)

    def turn(self) -> float:
        """One turn; returns how long to pause. Raises nothing that can be survived."""
        try:
            pause_s = self._turn()
        except Exception as error:
            self._failures += 1
            if self._failures == 1:
                self._say("error", "loop failed", error=repr(error)[:200], exc_info=error)
            return backoff_s(self._failures, self._clock)
        if self._failures:
            self._say("info", "loop recovered", failures=self._failures)
            self._failures = 0
        return pause_s

    def hurry(self) -> None:
        """End the pause under way, or the next one."""
        self._awake.set()

    def stop(self) -> None:
        """Returns at once; the loop ends with the turn under way."""
        self.stopped = True
        self._awake.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread that `start` began."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _say(self, level: str, event: str, **fields: object) -> None:
        # A full disk or a closed pipe behind the log is no reason to stop either.
        with contextlib.suppress(Exception):
            getattr(log, level)(event, loop=self._name, **fields)
