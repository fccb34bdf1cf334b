"""Single flight in one process: of the requests that want the same at once, one goes for it and the others wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from discovery.errors import BreakerOpen, BudgetExhausted, NoInstance
from gateway.errors import Overloaded

T = TypeVar("T")

# What every other request would meet at this moment. A call that was lost or late may have been so because its leader had little time.
SHARED_ERRORS = (Overloaded, NoInstance, BreakerOpen, BudgetExhausted)


class Flight(Generic[T]):
    """`brought` is what it brought. `error` is why it brought nothing, if that would fail the others too. `alone`: what it
    brought is its leader's."""

    __slots__ = ("_done", "alone", "brought", "error")

    def __init__(self, event: Callable[[], Any] = threading.Event) -> None:
        self._done = event()
        self.brought: T | None = None
        self.error: Exception | None = None
        self.alone = False

    def wait(self, seconds: float) -> bool:
        return bool(self._done.wait(max(0.0, seconds)))

    def release(self) -> None:
        """Let the others go on."""
        self._done.set()

    def fail(self, error: BaseException) -> None:
        if isinstance(error, SHARED_ERRORS):
            self.error = error


class Flights(Generic[T]):
    """Thread-safe. `event` makes what the others wait for: one of gevent's where they are greenlets of one thread."""

    def __init__(self, event: Callable[[], Any] = threading.Event) -> None:
        self._event = event
        self._lock = threading.Lock()
        self._flights: dict[Hashable, Flight[T]] = {}

    def enter(self, key: Hashable) -> tuple[Flight[T], bool]:
        """The flight for a key, and whether the caller leads it: then it must `leave`, whatever happens."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = Flight(self._event)
            return flight, True

    def leave(self, key: Hashable, flight: Flight[T]) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.release()


def copy_error(error: Exception) -> Exception:
    """A copy of an error that several callers are to raise: a traceback belongs to one."""
    copied = type(error).__new__(type(error))
    copied.__dict__.update(error.__dict__)
    copied.args = error.args
    return copied
