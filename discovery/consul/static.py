"""What a reader of the catalog needs, and the simplest thing that has it."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Protocol

from discovery.model import Instance, Snapshot


class Reading(Protocol):
    """View and StaticView: a snapshot at once, its age in seconds, and whether it is being kept up to date."""

    def snapshot(self) -> Snapshot: ...

    def age_s(self) -> float: ...

    @property
    def healthy(self) -> bool: ...


class StaticView:
    """A snapshot that never ages: for tests, and for fixed lists of instances."""

    def __init__(self, snapshot: Snapshot | Iterable[Instance]) -> None:
        self._snapshot = Snapshot()
        self.replace(snapshot)

    def replace(self, snapshot: Snapshot | Iterable[Instance]) -> None:
        """Answer with something else from now on."""
        if not isinstance(snapshot, Snapshot):
            services: dict[str, tuple[Instance, ...]] = {}
            for instance in sorted(snapshot, key=lambda each: each.key):
                services[instance.service] = (*services.get(instance.service, ()), instance)
            snapshot = Snapshot(MappingProxyType(services), self._snapshot.version + 1)
        self._snapshot = snapshot

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def age_s(self) -> float:
        return 0.0

    @property
    def healthy(self) -> bool:
        return True
