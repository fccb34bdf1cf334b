"""Work beside the requests: `kit().jobs.every(1.0, sweep)`."""

from __future__ import annotations

import time
from collections.abc import Callable

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.loop import Loop
from services.kit.db.session import background


class Jobs:
    """Functions that run again and again in the worker process, each on a thread of its own, from its start to its end.

    No exception ends one: it is logged once until it is over, and the next turn comes after a growing pause. Sessions that a
    job opens have a place in the database of their own, so that neither waits for the other.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._loops: list[Loop] = []

    def every(self, seconds: float, work: Callable[[], object]) -> None:
        """Call `work` about every so many seconds, from the start of the worker on. Not after that start."""

        def turn() -> float:
            with background():
                work()
            # Jitter keeps instances that were started together from asking together.
            return seconds * (0.5 + self._clock.random())

        self._loops.append(Loop(getattr(work, "__qualname__", "job"), turn, clock=self._clock))

    def start(self) -> None:
        """Begin. In the worker: threads do not survive a fork."""
        for loop in self._loops:
            loop.start()

    def stop(self, within_s: float) -> None:
        """Begin no further turn, and wait for those under way."""
        until = time.monotonic() + within_s
        for loop in self._loops:
            loop.stop()
        for loop in self._loops:
            loop.join(max(0.0, until - time.monotonic()))
