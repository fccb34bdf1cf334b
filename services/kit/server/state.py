"""Where an instance is in its life, in memory that its master and its worker share."""

from __future__ import annotations

import mmap

SERVING, DRAINING = 0, 1


class State:
    """One byte, made before the fork: the master sets it, the worker's `/health/ready` reads it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    @property
    def draining(self) -> bool:
        return self._memory[0] == DRAINING

    def drain(self) -> None:
        """From now on this instance wants no new work."""
        self._memory[0] = DRAINING
