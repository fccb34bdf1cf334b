"""Reloads: whether one is due, when, and what came of it; and the file, kept in step with run-time changes.

Both are carried out on one thread beside the loop: a check and a reload take tenths of a second, and seconds on a machine under load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import structlog

from discovery.clock import Clock
from discovery.model import Route
from haproxy.controller.config.model import EdgeState, VerifyKey
from haproxy.controller.loop.reload import Reloader
from haproxy.controller.loop.steady import Health, survives
from haproxy.controller.metrics import Metrics
from haproxy.controller.runtime.socket import ProcessInfo

log = structlog.get_logger(__name__)

RELOAD_EVERY_S = 1.0
# A deployment changes its route a few times; from the next one on each waits twice as long as the one before.
FREE_CHANGES = 5
MOST_S = 15.0
# A service that is quiet for this long starts afresh.
FORGET_S = 120.0
# What failed is tried again after these, twice as long each time: a full disk, a lost file, a machine out of memory may
# pass in a moment. A changed wanted state is tried at once.
RETRY_FIRST_S = 1.0
RETRY_MOST_S = 30.0
# How long, and how often, a reload that had better wait does so.
HOLD_S = 0.2
MAX_HOLDS = 6


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker should have been loaded with; `print_` is the fingerprint of the rest and of the settings."""

    print_: str
    routes: Mapping[str, Route]
    keys: tuple[VerifyKey, ...]

    def changed(self, other: Wanted | None) -> frozenset[str]:
        """The services that have another route in `other`, or none; empty where the other is not known."""
        if other is None:
            return frozenset()
        names = {*self.routes, *other.routes}
        return frozenset(name for name in names if self.routes.get(name) != other.routes.get(name))


class Flapping:
    """How often services have changed their routes lately, and how long the next change of each must wait. Monotonic seconds.

    A service that flaps its route waits alone: the change of another one brings its own along.
    """

    def __init__(self) -> None:
        # service → reloads that it has caused, the time of the last one, and whether its wait has been logged
        self._records: dict[str, tuple[int, float, bool]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def reloaded(self, services: Iterable[str], now: float) -> None:
        """A reload has brought the changes of these services."""
        # What is forgotten needs no room: names come from outside.
        self._records = {name: r for name, r in self._records.items() if now - r[1] <= FORGET_S}
        for service in services:
            self._records[service] = (self._records.get(service, (0, 0.0, False))[0] + 1, now, False)

    def due(self, services: Iterable[str], soonest: float) -> float:
        """From when on a reload may bring changes of these services: as soon as one of them need not wait."""
        times = {service: self._due_of(service) for service in services}
        if not times or min(times.values()) <= soonest:
            return soonest
        for service in times:
            count, at, logged = self._records[service]
            if not logged:
                log.warning(
                    "route changes too often, its reload waits", service=service, wait_s=_wait_s(count)
                )
                self._records[service] = (count, at, True)
        return min(times.values())

    def _due_of(self, service: str) -> float:
        if service not in self._records:
            return float("-inf")
        count, at, _ = self._records[service]
        return at + _wait_s(count)


def _wait_s(reloads: int) -> float:
    over = reloads - FREE_CHANGES
    return min(float(2**over), MOST_S) if over > 0 else 0.0


class Reloads:
    """Belongs to the thread of the loop; `wake` is called from another one when a reload has ended."""

    def __init__(
        self, reloader: Reloader, metrics: Metrics, health: Health, wake: Callable[[], None], clock: Clock
    ) -> None:
        self._reloader = reloader
        self._metrics = metrics
        self._health = health
        self._wake = wake
        self._clock = clock
        self._flapping = Flapping()
        self._pool = ThreadPoolExecutor(1, "reload")
        self._job: tuple[Future[ProcessInfo], str, Wanted] | None = None
        self._write: Future[bool] | None = None
        # The fingerprint that the worker was loaded with, and all of that where it is known.
        self._loaded: str | None = None
        self._has: Wanted | None = None
        self._reason: str | None = None
        self._at = 0.0
        self._started_at = float("-inf")
        self._hurry = False
        self._holds = 0
        self._failed: str | None = None
        self._failures = 0
        self._problem = ""
        # Services whose accepted route the worker does not have yet.
        self.pending: frozenset[str] = frozenset()

    @property
    def busy(self) -> bool:
        """Whether one is due or under way: the worker does not have what it should."""
        return self._reason is not None or self._job is not None

    @property
    def under_way(self) -> bool:
        return self._job is not None

    @property
    def writing(self) -> bool:
        return self._write is not None and not self._write.done()

    @property
    def at(self) -> float | None:
        """When to look again (monotonic seconds); None when nothing is due, or one is under way."""
        return self._at if self._reason is not None and self._job is None else None

    def why(self) -> str:
        """What services that are pending wait for, in the words of a verdict."""
        if self._problem:
            return f"the edge could not be reloaded, and tries again: {self._problem}"
        return f"waits for a reload of the edge, {MOST_S:.0f} s at most where a route changes again and again"

    def meet(self, process: ProcessInfo) -> None:
        """The worker is another one."""
        self._loaded = self._reloader.loaded(process)
        self._failed, self._failures = None, 0

    def lack(self) -> None:
        """The worker was found without something that it should have."""
        self._loaded = None

    def hurry(self) -> None:
        """The next reload waits for nothing: an operator has changed something."""
        self._hurry = True

    def want(self, wanted: Wanted, reason: str) -> bool:
        """Find out whether the worker has this; if not, a reload is due, which is answered."""
        if wanted.print_ == self._loaded:
            self._reason, self._holds, self._problem = None, 0, ""
            self._has, self._hurry = wanted, False
            self._health.well("reload")
            self.pending = frozenset()
            return False
        self._reason = self._reason or reason
        if self._loaded is None:
            self._has = None
        if wanted.print_ != self._failed:
            self._at = self._due(wanted)
        never = self._loaded is None and self._failures > 0
        self.pending = frozenset(wanted.routes) if never else wanted.changed(self._has)
        return True

    def _due(self, wanted: Wanted) -> float:
        soonest = self._started_at + RELOAD_EVERY_S
        if self._hurry or self._has is None or wanted.keys != self._has.keys:
            return soonest
        return self._flapping.due(wanted.changed(self._has), soonest)

    def ready(self, now: float, hold: bool) -> bool:
        """Whether to `start` one now; `hold`: it had better wait for a short time."""
        if self.at is None or now < self._at:
            return False
        if hold and self._holds < MAX_HOLDS:
            self._holds += 1
            self._at = now + HOLD_S
            return False
        self._holds = 0
        return True

    def start(self, state: EdgeState, wanted: Wanted) -> None:
        self._started_at = self._clock.monotonic()
        future = self._pool.submit(self._reloader.reload, state)
        self._job = (future, self._reason or "routes", wanted)
        future.add_done_callback(lambda _: self._wake())

    def take(self) -> ProcessInfo | None:
        """The worker of a reload that has come up since the last call."""
        if self._job is None or not self._job[0].done():
            return None
        (future, reason, wanted), self._job = self._job, None
        try:
            process = future.result()
        except Exception as error:  # whatever it was, HAProxy has what it had
            self._fail(reason, wanted, error)
            return None
        # Only now: what changed meanwhile must not wait for the disk.
        mark = partial(self._reloader.mark, process, wanted.print_)
        self._pool.submit(survives, "marker", mark, self._health)
        self._flapping.reloaded(wanted.changed(self._has), self._clock.monotonic())
        self._has, self._loaded, self._hurry = wanted, wanted.print_, False
        self._reason, self._failed, self._failures = None, None, 0
        self._metrics.reloads.labels(reason).inc()
        log.info("reloaded haproxy", reason=reason, pid=process.pid)
        return process

    def _fail(self, reason: str, wanted: Wanted, error: Exception) -> None:
        self._failures = self._failures + 1 if wanted.print_ == self._failed else 1
        self._failed = wanted.print_
        pause_s = min(RETRY_MOST_S, RETRY_FIRST_S * 2.0 ** (self._failures - 1))
        self._at = self._clock.monotonic() + pause_s
        self._metrics.reload_failures.labels(reason).inc()
        self._problem = str(error)[:500] or repr(error)
        if self._health.wrong("reload", self._problem):
            log.error(
                "reload failed, haproxy keeps what it has", reason=reason, error=str(error) or repr(error)
            )

    def write(self, state: EdgeState) -> None:
        """Bring the file up to date with this state. A failure is reported, and tried again with the next one."""
        self._write = self._pool.submit(survives, "file", partial(self._reloader.write, state), self._health)

    def stop(self) -> None:
        """Wait for what is under way."""
        self._pool.shutdown(wait=True)
