"""Where instances say that they live: an address and port that one service holds is not another's to send requests to."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from discovery.model import Instance

Place = tuple[str, int]


def place_of(instance: Instance) -> Place:
    """Address and port in one spelling; an address that is none stays as it is, and is refused elsewhere."""
    try:
        address = ipaddress.ip_address(instance.address)
    except ValueError:
        return instance.address, instance.port
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), instance.port


class Places:
    """Who was first at each place, whether the edge knows the service or not. Not thread-safe.

    Only those count whose check is not critical: a dead registration must not keep a port from its next user.
    """

    def __init__(self) -> None:
        self._at: dict[Place, dict[str, int]] = {}
        self._of: dict[str, frozenset[Place]] = {}

    def update(self, service: str, instances: Sequence[Instance]) -> None:
        """Take in all instances of a service; none: it is gone."""
        for place in self._of.pop(service, ()):
            self._at[place].pop(service)
            if not self._at[place]:
                del self._at[place]
        alive = [(place_of(i), i.create_index) for i in instances if i.status != "critical"]
        for place, index in alive:
            services = self._at.setdefault(place, {})
            services[service] = min(index, services.get(service, index))
        if alive:
            self._of[service] = frozenset(place for place, _ in alive)

    def holder(self, place: Place) -> str | None:
        """The service that was there first, by create index; None where nobody lives."""
        services = self._at.get(place)
        return min(services, key=lambda name: (services[name], name)) if services else None

    def neighbours(self, service: str, instances: Sequence[Instance]) -> set[str]:
        """Other services that live where this one did, or will with these instances."""
        places = {*self._of.get(service, ()), *map(place_of, instances)}
        return {name for place in places for name in self._at.get(place, ())} - {service}
