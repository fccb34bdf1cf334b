"""Reloads: whether one is due, when, carried out on a thread of its own, and what came of it.

The loop goes on meanwhile: a check and a reload take tenths of a second, and seconds on a machine under load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import structlog

from discovery.clock import Clock
from discovery.model import Route
from haproxy.controller.config.model import EdgeState, VerifyKey
from haproxy.controller.loop.backoff import MOST_S, Patience
from haproxy.controller.loop.reload import Reloader
from haproxy.controller.loop.steady import Health, survives
from haproxy.controller.metrics import Metrics
from haproxy.controller.runtime.socket import ProcessInfo

log = structlog.get_logger(__name__)

# What failed is tried again after these, twice as long each time: a full disk, a lost file, a machine out of memory may
# pass in a moment. A changed wanted state is tried at once.
RETRY_FIRST_S = 1.0
RETRY_MOST_S = 30.0
# Reloads that had better wait for something do so this long, and this often.
HOLD_S = 0.2
MAX_HOLDS = 6


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a worker should have been loaded with; `print_` is the fingerprint of the rest and of the settings."""

    print_: str
    routes: Mapping[str, Route]
    keys: tuple[VerifyKey, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    future: Future[ProcessInfo]
    reason: str
    wanted: Wanted


class Reloads:
    """Belongs to the thread of the loop; `wake` is called from another one when a reload has ended."""

    def __init__(
        self,
        reloader: Reloader,
        metrics: Metrics,
        health: Health,
        wake: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._reloader = reloader
        self._metrics = metrics
        self._health = health
        self._wake = wake
        self._clock = clock
        self._patience = Patience()
        self._pool = ThreadPoolExecutor(1, "reload")
        self._job: _Job | None = None
        self._loaded: str | None = None
        self._reason: str | None = None
        self._at = 0.0
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
    def at(self) -> float | None:
        """When to look again (monotonic seconds); None when nothing is due, or one is under way."""
        return self._at if self._reason is not None and self._job is None else None

    def why(self) -> str:
        """What services that are pending wait for, in the words of a verdict."""
        if self._problem:
            return f"the edge could not be reloaded, and tries again: {self._problem}"
        return f"waits for a reload of the edge, {MOST_S:.0f} s at most where a route changes again and again"

    def meet(self, process: ProcessInfo) -> bool:
        """Another worker; answers whether it was loaded by a controller of ours."""
        self._loaded = self._reloader.loaded(process)
        self._failed, self._failures = None, 0
        return self._loaded is not None

    def lack(self) -> None:
        """The worker was found without something that it should have."""
        self._loaded = None

    def hurry(self) -> None:
        """An operator has spoken: nothing waits."""
        self._patience.hurry()

    def want(self, wanted: Wanted, reason: str) -> bool:
        """Find out whether the worker has this; if not, a reload is due, which is answered."""
        if wanted.print_ == self._loaded:
            self._reason, self._holds, self._problem = None, 0, ""
            self._patience.in_step(wanted.routes, wanted.keys)
            self._health.well("reload")
            self.pending = frozenset()
            return False
        self._reason = self._reason or reason
        if self._loaded is None:
            self._patience.unknown()
        if wanted.print_ != self._failed:
            self._at = self._patience.due(wanted.routes, wanted.keys)
        never = self._loaded is None and self._failures > 0
        self.pending = frozenset(wanted.routes) if never else self._patience.changed(wanted.routes)
        return True

    def ready(self, now: float, hold: bool) -> bool:
        """Whether to `start` one now; `hold`: it had better wait, if not for long."""
        if self.at is None or now < self._at:
            return False
        if hold and self._holds < MAX_HOLDS:
            self._holds += 1
            self._at = now + HOLD_S
            return False
        self._holds = 0
        return True

    def start(self, state: EdgeState, wanted: Wanted) -> None:
        self._patience.tried(self._clock.monotonic())
        future = self._pool.submit(self._reloader.reload, state)
        self._job = _Job(future, self._reason or "routes", wanted)
        future.add_done_callback(lambda _: self._wake())

    def take(self) -> ProcessInfo | None:
        """The worker of a reload that has come up since the last call."""
        job, now = self._job, self._clock.monotonic()
        if job is None or not job.future.done():
            return None
        self._job = None
        try:
            process = job.future.result()
        except Exception as error:  # whatever it was, HAProxy has what it had
            self._fail(job, error, now)
            return None
        # Only now: what changed meanwhile must not wait for the disk.
        mark = partial(self._reloader.mark, process, job.wanted.print_)
        self._pool.submit(survives, "marker", mark, self._health)
        self._loaded, self._reason, self._failed, self._failures = job.wanted.print_, None, None, 0
        self._patience.reloaded(job.wanted.routes, job.wanted.keys, now)
        self._metrics.reloads.labels(job.reason).inc()
        log.info("reloaded haproxy", reason=job.reason, pid=process.pid)
        return process

    def _fail(self, job: _Job, error: Exception, now: float) -> None:
        self._failures = self._failures + 1 if job.wanted.print_ == self._failed else 1
        self._failed = job.wanted.print_
        self._at = now + min(RETRY_MOST_S, RETRY_FIRST_S * 2.0 ** (self._failures - 1))
        self._metrics.reload_failures.labels(job.reason).inc()
        self._problem = str(error)[:500] or repr(error)
        if self._health.wrong("reload", self._problem):
            log.error(
                "reload failed, haproxy keeps what it has", reason=job.reason, error=str(error) or repr(error)
            )

    def stop(self) -> None:
        """Wait for the one under way."""
        self._pool.shutdown(wait=True)
