"""Places that requests hold while something lasts: so many in all, and so many of one holder, so that nobody has them all."""

from __future__ import annotations

import threading
from ipaddress import IPv6Address


class Place:
    """One that is held. `leave` may be called again."""

    __slots__ = ("_holder", "_places")

    def __init__(self, places: Places | None, holder: str) -> None:
        self._places = places
        self._holder = holder

    def leave(self) -> None:
        places, self._places = self._places, None
        if places is not None:
            places._give(self._holder)


NO_PLACE = Place(None, "")


class Places:
    """`most` at once (None: any number), `each` of one holder. Thread-safe."""

    def __init__(self, most: int | None, each: int) -> None:
        self._most = most
        self._each = each
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}
        self.taken = 0

    def take(self, holder: str) -> Place | None:
        """A place; None where the holder has too many, or all have."""
        with self._lock:
            held = self._held.get(holder, 0)
            if held >= self._each or (self._most is not None and self.taken >= self._most):
                return None
            self._held[holder] = held + 1
            self.taken += 1
        return Place(self, holder)

    def _give(self, holder: str) -> None:
        with self._lock:
            self.taken -= 1
            held = self._held.pop(holder) - 1
            if held:
                self._held[holder] = held


def source(address: str) -> str:
    """Who is behind an address: of IPv6, one customer holds a /64."""
    if ":" not in address:
        return address
    try:
        return IPv6Address(int(IPv6Address(address.partition("%")[0])) >> 64 << 64).compressed
    except ValueError:
        return address
