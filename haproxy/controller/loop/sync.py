"""The loop: changes come in, HAProxy is brought in step, and drift is mended. *When* to sync; *what* is in `plan`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.model import Instance, Snapshot
from haproxy.controller.config.model import EdgeState, Server, VerifyKey
from haproxy.controller.config.template import params_for
from haproxy.controller.errors import Unreachable
from haproxy.controller.loop.inbox import Inbox, News
from haproxy.controller.loop.reload import Reloader, fingerprint
from haproxy.controller.loop.schedule import Reloads, Wanted
from haproxy.controller.loop.steady import Health
from haproxy.controller.metrics import Metrics
from haproxy.controller.runtime.apply import Applier
from haproxy.controller.runtime.diff import MOVED
from haproxy.controller.runtime.socket import ProcessInfo, Runtime
from haproxy.controller.settings import EdgeSettings
from haproxy.controller.wanted.election import Desire, Outcome
from haproxy.controller.wanted.mass_exit import Guard
from haproxy.controller.wanted.ownership import Agreed, OwnerBook

log = structlog.get_logger(__name__)

TICK_S = 1.0
AWAY_TICK_S = 0.2
# How much of a full sync runs before the loop looks for changes again.
SLICE_S = 0.01
# The file follows run-time changes once they pause, or have gone on for a while: writing it costs a `haproxy -c`.
FILE_QUIET_S = 1.0
FILE_LATEST_S = 5.0


class Sync:
    """One edge in step with one view. Everything but `inbox` belongs to the thread that calls `turn`."""

    def __init__(
        self,
        settings: EdgeSettings,
        book: OwnerBook,
        runtime: Runtime,
        reloader: Reloader,
        metrics: Metrics,
        health: Health,
        keys: tuple[VerifyKey, ...] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.inbox = Inbox()
        self.desire = Desire(settings.policy(), book)
        self.guard = Guard(settings.edge_guard_grace_s, settings.edge_guard_minimum)
        self.reloads = Reloads(reloader, metrics, health, self.inbox.wake.ring, clock)
        self.to_report: set[str] = set()
        self.on_reload: Callable[[], None] = lambda: None
        self.propose: Callable[[Agreed], None] = lambda _: None
        # Why a reload had better wait, for a short time.
        self.busy: Callable[[], bool] = lambda: False
        self.keys = keys
        self._settings = settings
        self._book = book
        self._health = health
        self._runtime = runtime
        self._metrics = metrics
        self._clock = clock
        self._applier = Applier(metrics, settings.edge_drain_s)
        self._process: ProcessInfo | None = None
        self._met = False
        # service → when a change of it came that HAProxy does not have yet
        self._waiting: dict[str, float] = {}
        self._touched: set[str] = set()
        self._full: deque[str] = deque()
        self._full_began: float | None = None
        self._next_full = 0.0
        self._next_tick = 0.0
        self._file_due: float | None = None
        self._file_latest = 0.0

    def begin(self, snapshot: Snapshot, pins: Agreed | None, owners: Agreed | None) -> None:
        """Take in the first complete snapshot. What HAProxy serves already is the guard's "before"."""
        before = self._serving_now()
        if pins is not None:
            self._book.set_pins(pins.owners or {})
        if owners is not None:
            self._book.adopt(owners)
        self.desire.update({name: snapshot.instances(name) for name in snapshot.services})
        self._settle("start")
        self._guard(before)
        self.to_report |= self.desire.present()

    def turn(self) -> None:
        """Do everything that is due now. Never raises for what HAProxy or the disk do."""
        self._take()
        self._take_worker()
        now = self._clock.monotonic()
        released = self.guard.release(now)
        if released:
            self._touch(released)
        if now >= self._next_tick:
            self._tick(now)
        if self._process is not None:
            try:
                self._apply()
                self._maybe_reload()
                self._slice()
            except Unreachable as error:
                self._lost(error)
        self._keep_records()

    def wait(self) -> None:
        """Until something comes in, or something is due."""
        now = self._clock.monotonic()
        due = [self._next_tick]
        due += [at for at in (self._file_at(), self.guard.until) if at is not None]
        if self._process is not None:
            due += [self._next_full if not self._full else now, *self._applier.due()]
            due += [at for at in [self.reloads.at] if at is not None]
        self.inbox.wake.wait(min(max(min(due) - now, 0.0), TICK_S))

    def stop(self) -> None:
        """Let a reload that is under way end, and write down what waits."""
        if self._file_at() is not None:
            self.reloads.write(self._state())
        self.reloads.stop()

    def outcome(self, service: str) -> Outcome | None:
        """The verdict for its owner; None for a service that is not in Consul."""
        outcome = self.desire.outcome(service)
        if outcome is None or service not in self.reloads.pending:
            return outcome
        return replace(outcome, pending=self.reloads.why())

    def _take(self) -> None:
        news = self.inbox.take()
        for service in self.desire.released():
            news.dirty.setdefault(service, self._clock.monotonic())
        settle = self._take_documents(news)
        if news.dirty:
            settle |= self._take_services(news)
        if news.keys is not None:
            self.keys = news.keys
            self._route_change("keys")
        if settle:
            self._settle("routes")

    def _take_documents(self, news: News) -> bool:
        """Pins, and what the edges have agreed on; returns whether there are any."""
        if news.owners is not None:
            self._book.adopt(news.owners)
        if news.pins is not None:
            self._book.set_pins(news.pins.owners or {})
            self.reloads.hurry()
        return news.owners is not None or news.pins is not None

    def _take_services(self, news: News) -> bool:
        """Services that have changed; returns whether prefixes are to be given out again."""
        instances: dict[str, tuple[Instance, ...]] = {
            name: news.snapshot.instances(name) for name in news.dirty
        }
        beside = self.desire.neighbours(instances)
        instances |= {name: news.snapshot.instances(name) for name in beside}
        before = {name: self.desire.servers(name) for name in instances}
        settle = self.desire.update(instances)
        self._guard(before)
        for name, since in news.dirty.items():
            self._waiting.setdefault(name, since)
        self._touch(instances)
        return settle

    def _settle(self, reason: str) -> None:
        """Give out all prefixes; report what comes of it to the services, the other edges, and where need be HAProxy."""
        if self.desire.settle():
            self.to_report |= self.desire.present()
        proposal = self._book.proposal()
        if proposal is not None:
            self.propose(proposal)
        self._route_change(reason)

    def _guard(self, before: Mapping[str, Mapping[str, Server]]) -> None:
        was = self.guard.active
        touched = self.guard.step(
            before,
            {name: self.desire.servers(name) for name in before},
            {name: self.desire.ordered_out(name) for name in before},
            self.desire.serving,
            self._clock.monotonic(),
        )
        if self.guard.active and not was:
            self._metrics.guard_trips.inc()
        self._touch(touched)

    def _touch(self, services: Iterable[str]) -> None:
        services = set(services)
        if not services:
            return
        self._touched |= services
        self.to_report |= services
        self._file_changes()

    def _file_changes(self) -> None:
        now = self._clock.monotonic()
        if self._file_due is None:
            self._file_latest = now + FILE_LATEST_S
        self._file_due = min(now + FILE_QUIET_S, self._file_latest)

    def _file_at(self) -> float | None:
        """When to bring the file up to date. Not while a reload is due: it writes the file, and puts back the last good one
        when no worker comes up with it; nor while another state is being written."""
        return None if self.reloads.busy or self.reloads.writing else self._file_due

    def _route_change(self, reason: str) -> None:
        """Find out whether the worker has what the file should say; if not, a reload is due."""
        before = self.reloads.pending
        if self.reloads.want(self._wanted(), reason):
            self._metrics.in_step.set(0)
            self._file_changes()
        self.to_report |= before ^ self.reloads.pending

    def _wanted(self) -> Wanted:
        routes = self.desire.routes()
        return Wanted(fingerprint(routes, self.keys, self._settings), routes, self.keys)

    def _serving_now(self) -> dict[str, dict[str, Server]]:
        """What HAProxy serves for the services that this controller knows, as the guard counts it."""
        serving: dict[str, dict[str, Server]] = {}
        try:
            with self._runtime.session() as session:
                for service in self._book.memories:
                    seen = session.servers(f"svc_{service}") or {}
                    named = {s.name.partition(MOVED)[0]: s for s in seen.values() if s.mode == "ready"}
                    serving[service] = {
                        name: Server(name, s.address, s.port, s.weight, s.backup) for name, s in named.items()
                    }
        except Unreachable:
            return {}
        return serving

    def _tick(self, now: float) -> None:
        try:
            process = self._runtime.info()
        except Unreachable as error:
            self._next_tick = now + AWAY_TICK_S
            self._lost(error)
            return
        self._next_tick = now + TICK_S
        # The new worker of a reload may answer before the reload has ended.
        if process != self._process and not self.reloads.under_way:
            self._meet(process)
        if now >= self._next_full and not self._full:
            self._begin_full(now)

    def _meet(self, process: ProcessInfo) -> None:
        """Another worker than the known one: the first, or one that this controller has not started."""
        log.info("following a worker of haproxy", pid=process.pid, known=self._process and self._process.pid)
        first, self._met = not self._met, True
        self.reloads.meet(process)
        self._route_change("start" if first else "restart")
        self._follow(process)

    def _follow(self, process: ProcessInfo) -> None:
        """It answers, and nothing is known of what it holds."""
        self._metrics.haproxy_up.set(1)
        self._health.well("haproxy")
        self._process = process
        self._applier.forget()
        self._begin_full(self._clock.monotonic())

    def _lost(self, error: Unreachable) -> None:
        if self._process is not None:
            log.warning("haproxy does not answer", error=str(error))
        self._health.wrong("haproxy", "does not answer")
        self._metrics.haproxy_up.set(0)
        self._process = None

    def _apply(self) -> None:
        services = self._touched | self._applier.take_due(self._clock.monotonic())
        if not services:
            return
        self._touched = set()
        try:
            self._bring(services)
        except Unreachable:
            self._touched |= services
            raise

    def _bring(self, services: set[str]) -> None:
        """Bring these services in step; a reload is due where HAProxy lacks a backend that it should have."""
        now = self._clock.monotonic()
        with self._runtime.session() as session:
            for service in sorted(services):
                backend = self.desire.backend(service, self.guard.held.get(service))
                if backend is None:
                    self._waiting.pop(service, None)
                    self._applier.drop(service)
                    continue
                found = self._applier.bring(session, backend, now)
                if self.reloads.busy:
                    continue
                if found:
                    self._note_applied(service)
                else:
                    self.reloads.lack()
                    self._route_change("drift")

    def _note_applied(self, service: str) -> None:
        since = self._waiting.pop(service, None)
        if since is not None:
            self._metrics.applied.observe(self._clock.monotonic() - since)

    def _maybe_reload(self) -> None:
        if self.reloads.ready(self._clock.monotonic(), self.busy()):
            # What is loaded now is the newest, but for what changes from here on.
            self._file_due = None
            self.reloads.start(self._state(), self._wanted())

    def _take_worker(self) -> None:
        """Follow the worker that a reload has brought."""
        ended = self.reloads.under_way
        process = self.reloads.take()
        if process is not None:
            # What changed meanwhile, changed in the old one.
            self._touched |= self._waiting.keys()
            self._follow(process)
            self.on_reload()
        elif ended and not self.reloads.under_way:
            self._route_change("routes")
            self.to_report |= self.reloads.pending

    def _state(self) -> EdgeState:
        state = self.desire.state(self.keys, self.guard.held)
        self._applier.params = params_for(state, self._settings)
        return state

    def _begin_full(self, now: float) -> None:
        self._settle("routes")  # a memory may have expired
        self._full = deque(sorted(self.desire.routes()))
        self._full_began = now
        self._next_full = now + self._settings.edge_sync_s

    def _slice(self) -> None:
        until = self._clock.monotonic() + SLICE_S
        while self._full and self._clock.monotonic() < until:
            self._bring({self._full.popleft() for _ in range(min(20, len(self._full)))})
        if not self._full and self._full_began is not None:
            self._metrics.full_sync.set(self._clock.monotonic() - self._full_began)
            self._full_began = None

    def _keep_records(self) -> None:
        self._book.save()
        now = self._clock.monotonic()
        due = self._file_at()
        if due is not None and now >= due:
            self._file_due = None
            self.reloads.write(self._state())
        busy = self._process is None or self.reloads.busy or self._full or self._touched
        self._metrics.in_step.set(0 if busy else 1)
        self._metrics.guard.set(1 if self.guard.active else 0)
        self._metrics.servers.set(self.desire.serving)
        self._metrics.routes.set(len(self._book.memories))
        self._metrics.keys.set(len(self.keys))
