"""Time, sleep and randomness behind one seam, so that tests own time."""

from __future__ import annotations

import random
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds as floats. `monotonic` never goes back; `time` is the wall clock (Unix time)."""

    def monotonic(self) -> float: ...

    def time(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...

    def random(self) -> float:
        """A float in [0, 1)."""
        ...


class SystemClock:
    """The real one."""

    # The function itself: a call asks for the time some fifteen times over.
    monotonic = staticmethod(time.monotonic)

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def random(self) -> float:
        return random.random()


SYSTEM_CLOCK = SystemClock()
