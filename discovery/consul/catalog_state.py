"""What was read of every service, and what of it is believed. No threads: the view's own thread uses it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import MappingProxyType

import structlog

from discovery.clock import Clock
from discovery.consul.api import ServiceRead
from discovery.errors import ConsulUnreachable
from discovery.model import Change, Instance, Snapshot

log = structlog.get_logger(__name__)

# Reads in a row end within this and so much more for each: a Consul that drips must not hold up what else has changed.
READS_S = 6.0
READ_S = 0.01


def ask_each(names: Sequence[str], ask: Callable[[str], ServiceRead], clock: Clock) -> Iterator[ServiceRead]:
    """The answers for `names`; a broken one comes as a read of nothing (index -1, no instances) and stops no other.

    Raises ConsulUnreachable, also where all of them together take too long.
    """
    until = clock.monotonic() + READS_S + len(names) * READ_S
    for name in names:
        if clock.monotonic() > until:
            raise ConsulUnreachable("the reads take too long")
        try:
            read = ask(name)
        except ConsulUnreachable:
            raise
        except Exception as error:  # also one that was not thought of concerns this service alone
            log.debug("service not read", service=name[:63], error=repr(error)[:200])
            read = ServiceRead(name, -1, None)
        yield read


class Records:
    """The reads behind a snapshot. `held` names the services that keep instances which are missing from Consul."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.held: set[str] = set()
        self._reads: dict[str, ServiceRead] = {}
        self._touched: set[str] = set()
        self._changed_at: dict[str, int] = {}

    def moved(self, read: ServiceRead) -> bool:
        """Whether a service's index differs from its last read: a lower one, of a Consul that was restored, counts too."""
        known = self._reads.get(read.service)
        return known is None or known.index != read.index

    def unlisted(self, names: Iterable[str]) -> set[str]:
        """Services that have instances here and are not among `names`."""
        return self._reads.keys() - set(names)

    def latest(self, names: Collection[str], count: int) -> list[str]:
        """Up to `count` of `names`: those that changed last."""
        known = (name for name in self._changed_at if name in names)
        return heapq.nlargest(count, known, key=lambda name: self._changed_at[name])

    def on_nodes(self, nodes: set[str]) -> set[str]:
        """Services with an instance on one of the nodes."""
        return {
            service
            for service, instances in self.snapshot.services.items()
            if any(instance.node in nodes for instance in instances)
        }

    def accept(self, read: ServiceRead, *, listed: bool, hold: bool) -> bool:
        """Take a read in. False when it is not to be believed yet.

        `listed`: the list of services has the service, so that an empty answer contradicts it. `hold`: Consul has just
        been reset or out of reach, so that what is missing may only have had no time to register again.
        """
        if read.instances is None:
            return False
        known = self._reads.get(read.service)
        old: tuple[Instance, ...] = (known.instances if known else None) or ()
        if old and not read.instances and listed:
            return False
        present = {instance.key for instance in read.instances}
        missing = tuple(instance for instance in old if instance.key not in present)
        if hold and missing:
            self.held.add(read.service)
            merged = sorted((*read.instances, *missing), key=lambda instance: instance.key)
            read = ServiceRead(read.service, read.index, tuple(merged))
        self._reads[read.service] = read
        self._touched.add(read.service)
        return True

    def publish(self) -> list[Change]:
        """Bring `snapshot` up to date with what was accepted; returns what differs."""
        touched, self._touched = self._touched, set()
        services = dict(self.snapshot.services)
        changes: list[Change] = []
        for name in sorted(touched):
            before = services.get(name, ())
            after = self._reads[name].instances or ()
            if after:
                services[name] = after
            else:
                services.pop(name, None)
                del self._reads[name]
            if before != after:
                changes.append(Change(name, before, after))
        if changes:
            self.snapshot = Snapshot(MappingProxyType(services), self.snapshot.version + 1)
            for change in changes:
                self._changed_at[change.service] = self.snapshot.version
                if not change.after:
                    del self._changed_at[change.service]
        return changes
