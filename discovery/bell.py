"""A wake-up that a signal handler may give."""

from __future__ import annotations

import queue


class Bell:
    """Like an Event that resets itself, for one waiting thread; `ring` may be called from anywhere, signal handlers included.

    `threading.Event.set` may not: its lock may be held by the very `wait` that the handler interrupts, and then both
    stand for ever. `SimpleQueue.put` is reentrant. Ref: https://docs.python.org/3/library/queue.html#queue.SimpleQueue.put
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        if self._queue.empty():
            self._queue.put(None)

    def wait(self, timeout_s: float) -> bool:
        """Until it is rung, or has been since the last call; False when time is up first."""
        try:
            self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return False
        return True
