"""Which instances are ejected, and until when: those that this process has seen fail, whatever Consul thinks of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.model import Instance

Identity = tuple[str, str, str, int]


def identity(instance: Instance) -> Identity:
    """An instance at its address: one that comes back elsewhere under its old id starts with a clean slate."""
    return (instance.node, instance.id, instance.address, instance.port)


@dataclass(frozen=True, slots=True)
class OutlierSettings:
    """`failures` in a row eject an instance for `base_s`, doubled each time up to `max_s`.

    A refused connection ejects at once: nothing listens. For as long again as it was out, one failure ejects again.
    """

    failures: int = 3
    base_s: float = 2.0
    max_s: float = 30.0


@dataclass(slots=True)
class _Record:
    failures: int = 0
    times: int = 0
    until: float = 0.0
    watched_until: float = 0.0
    silent: bool = False  # since its last ejection


class Outliers:
    """The ejections of one service. Thread-safe; holds its lock for dictionary work only."""

    def __init__(self, settings: OutlierSettings | None = None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings or OutlierSettings()
        self._clock = clock
        self._lock = threading.Lock()
        self._records: dict[Identity, _Record] = {}

    def succeeded(self, instance: Instance) -> None:
        """The instance answered, and not with a failure of its own."""
        key = identity(instance)
        # Read without the lock: nearly every call succeeds, on an instance that has no record.
        if key not in self._records:
            return
        with self._lock:
            record = self._records.get(key)
            if record is not None:
                record.failures = 0
                record.silent = False
                if self._clock.monotonic() >= record.watched_until:
                    del self._records[key]

    def failed(self, instance: Instance, *, refused: bool = False) -> float:
        """The instance failed a call; returns for how many seconds it is ejected now, 0 when it stays."""
        with self._lock:
            record = self._records.setdefault(identity(instance), _Record())
            now = self._clock.monotonic()
            if now < record.until:
                return 0.0  # a late outcome of the time before the ejection
            record.failures += 1
            on_probation = record.times > 0 and now < record.watched_until
            if not (refused or on_probation or record.failures >= self._settings.failures):
                return 0.0
            if not on_probation:
                record.times = 0
            out_s = min(self._settings.max_s, self._settings.base_s * 2.0**record.times)
            record.times = min(record.times + 1, 16)
            record.failures = 0
            record.until = now + out_s
            record.watched_until = record.until + out_s
            record.silent = True
            return out_s

    def ejected(self) -> frozenset[Identity]:
        """The instances that are out just now."""
        if not self._records:
            return frozenset()
        with self._lock:
            now = self._clock.monotonic()
            return frozenset(key for key, record in self._records.items() if now < record.until)

    def unproven(self) -> frozenset[Identity]:
        """Those that are out just now, or have not answered since: the end of an ejection is not the end of its cause."""
        if not self._records:
            return frozenset()
        with self._lock:
            now = self._clock.monotonic()
            return frozenset(
                key for key, record in self._records.items() if record.silent or now < record.until
            )

    def forget_all_but(self, instances: Iterable[Instance]) -> None:
        """Drop what is known of instances that are gone."""
        if not self._records:
            return
        keep = {identity(instance) for instance in instances}
        with self._lock:
            self._records = {key: record for key, record in self._records.items() if key in keep}
