"""The guard: when most of the fleet vanishes at once, Consul is more likely wrong than the fleet dead."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from haproxy.controller.config.model import Server

log = structlog.get_logger(__name__)

# One event may reach us in parts: several instances each, within this time. One instance after the other is no such event,
# however fast: then they are being stopped in turn.
STEP_S = 0.5

Servers = Mapping[str, Mapping[str, Server]]


class Guard:
    """Keeps servers that vanished in one step for a grace time, and leaves the judgement to HAProxy's own checks.

    It trips when at least `minimum` instances, and more than half of all, stop being served within one step; those in
    maintenance do not count, they were ordered out. When the grace is over, what is still gone is let go. Pure but for its log.
    """

    def __init__(self, grace_s: float, minimum: int) -> None:
        self._grace_s = grace_s
        self._minimum = minimum
        self._vanished: dict[tuple[str, str], tuple[float, Server]] = {}
        # When the grace ends (monotonic seconds); None while nothing is held.
        self.until: float | None = None
        self.held: dict[str, dict[str, Server]] = {}

    @property
    def active(self) -> bool:
        return self.until is not None

    def step(
        self,
        before: Servers,
        after: Servers,
        ordered_out: Mapping[str, frozenset[str]],
        serving: int,
        now: float,
    ) -> set[str]:
        """Look at one change: by service, the servers before and after it; `serving` is the size of the whole fleet
        after it. Returns the services whose held servers have changed."""
        self._vanished = {key: entry for key, entry in self._vanished.items() if now - entry[0] < STEP_S}
        vanished: dict[tuple[str, str], tuple[float, Server]] = {}
        for service in before.keys() | after.keys():
            now_there = after.get(service, {})
            out = ordered_out.get(service, frozenset())
            for name, server in before.get(service, {}).items():
                if name not in now_there and name not in out:
                    vanished[(service, name)] = (now, server)
            for name in now_there.keys() | out:
                self._vanished.pop((service, name), None)
        if len(vanished) > 1 or self.active:
            self._vanished |= vanished
        touched = self._forget_returned(after, ordered_out)
        gone = len(self._vanished)
        trips = gone >= self._minimum and gone > (serving + gone) / 2
        if trips and self.until is None:
            self.until = now + self._grace_s
            log.warning(
                "guard holds: most instances vanished at once",
                vanished=gone,
                left=serving,
                grace_s=self._grace_s,
            )
        if self.until is not None and now < self.until:
            touched |= self._hold()
        return touched

    def release(self, now: float) -> set[str]:
        """Let go of what is still gone when the grace is over; returns the services concerned."""
        if self.until is None or now < self.until:
            return set()
        touched = set(self.held)
        log.warning("guard lets go: still gone after the grace", services=len(touched))
        self.held, self.until = {}, None
        self._vanished = {}
        return touched

    def _hold(self) -> set[str]:
        for (service, name), (_, server) in self._vanished.items():
            self.held.setdefault(service, {})[name] = server
        return {service for service, _ in self._vanished}

    def _forget_returned(self, after: Servers, ordered_out: Mapping[str, frozenset[str]]) -> set[str]:
        touched = set()
        for service, servers in after.items():
            held = self.held.get(service, {})
            for name in (servers.keys() | ordered_out.get(service, frozenset())) & held.keys():
                del held[name]
                touched.add(service)
            if service in self.held and not held:
                del self.held[service]
        return touched
