"""Single flight in one process: of those who want the same answer at once, one goes for it and the others wait."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from discovery.errors import BreakerOpen, BudgetExhausted, NoInstance
from gateway.cache.key import Variant
from gateway.cache.memory import Held
from gateway.errors import Overloaded

# What would be said to everybody else at this moment. A call that was lost or late may have been so by its leader's impatience.
EVERYBODYS = (Overloaded, NoInstance, BreakerOpen, BudgetExhausted)


class Flight:
    """`brought` is what it brought, under its name. `error` is why it brought nothing, if what failed it would fail the others
    too. `alone`: what it brought is its leader's."""

    __slots__ = ("_done", "alone", "brought", "error")

    def __init__(self) -> None:
        self._done = threading.Event()
        self.brought: tuple[Variant, Held] | None = None
        self.error: Exception | None = None
        self.alone = False

    def wait(self, seconds: float) -> bool:
        return self._done.wait(max(0.0, seconds))

    def release(self) -> None:
        """Let the others go on."""
        self._done.set()

    def failed(self, error: BaseException) -> None:
        if isinstance(error, EVERYBODYS):
            self.error = error


class Flights:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Hashable, Flight] = {}

    def enter(self, key: Hashable) -> tuple[Flight, bool]:
        """The flight for a key, and whether the caller leads it: then he must `leave`, whatever happens."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = Flight()
            return flight, True

    def leave(self, key: Hashable, flight: Flight) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.release()


def again(error: Exception) -> Exception:
    """A copy of an error that several are to raise: a traceback belongs to one."""
    copied = type(error).__new__(type(error))
    copied.__dict__.update(error.__dict__)
    copied.args = error.args
    return copied
