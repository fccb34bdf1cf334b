"""Where instances say that they live: an address and port that one service holds is not another's to send requests to."""

from __future__ import annotations

from collections.abc import Sequence

from discovery.contract import plain_address
from discovery.model import Instance

Place = tuple[str, int]
MAX_HELD = 10_000


def place_of(instance: Instance) -> Place:
    """Address and port in one spelling; an invalid address stays as it is, and is refused elsewhere."""
    return plain_address(instance.address), instance.port


class Places:
    """Which service was first at each place, whether it asks for a route or not. Not thread-safe; times are monotonic seconds.

    A service is at a place with the lowest create index that it had there, and stays for `hold_s` after its last instance has
    gone, or has become critical: a program that restarts must find it as it was. No longer, for a dead registration must not keep a port from its next user for good.
    """

    def __init__(self, hold_s: float) -> None:
        self._hold_s = hold_s
        self._at: dict[Place, dict[str, int]] = {}
        self._of: dict[str, frozenset[Place]] = {}
        # (place, service) → until when it is held, in the order of these times.
        self._left: dict[tuple[Place, str], float] = {}

    @property
    def due(self) -> float:
        """When the next place is given up (see `release`); infinite while none is held for a service that has left."""
        return next(iter(self._left.values()), float("inf"))

    def update(self, service: str, instances: Sequence[Instance], now: float) -> None:
        """Take in all instances of a service; none: it is gone."""
        alive = [(place_of(i), i.create_index) for i in instances if i.status != "critical"]
        here = frozenset(place for place, _ in alive)
        for place in self._of.pop(service, frozenset()) - here:
            self._left[(place, service)] = now + self._hold_s
        for place, index in alive:
            services = self._at.setdefault(place, {})
            services[service] = min(index, services.get(service, index))
            self._left.pop((place, service), None)
        if here:
            self._of[service] = here
        while len(self._left) > MAX_HELD:
            self._forget(next(iter(self._left)))

    def release(self, now: float) -> set[str]:
        """Give up what has been held for long enough; returns the services that this may change."""
        touched: set[str] = set()
        while self.due <= now:
            place, service = next(iter(self._left))
            self._forget((place, service))
            touched |= self._at.get(place, {}).keys()
        return touched

    def holder(self, place: Place, *, left: bool) -> str | None:
        """The service that was there first, by create index; None where there is none. `left`: it may have left a moment ago."""
        services = self._at.get(place, {})
        names = services if left else [name for name in services if (place, name) not in self._left]
        return min(names, key=lambda name: (services[name], name), default=None)

    def neighbours(self, service: str, instances: Sequence[Instance]) -> set[str]:
        """Other services that live where this one did, or will with these instances."""
        places = {*self._of.get(service, ()), *map(place_of, instances)}
        return {name for place in places for name in self._at.get(place, ())} - {service}

    def _forget(self, left: tuple[Place, str]) -> None:
        del self._left[left]
        place, service = left
        services = self._at[place]
        del services[service]
        if not services:
            del self._at[place]
