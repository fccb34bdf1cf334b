"""The last good snapshot of the catalog, and its age.

Four blocking queries say *that* something changed: the list of services (any change of a registration), that of nodes (an
instance without an address of its own has its node's), and the checks that are critical or warning (which also name the
service they concern). What changed is then found by the index that Consul keeps for every service, and only that is read again. So the cost
of a change does not grow with the size of the fleet's answers: `/v1/health/state/any` would be 4.5 MB for ten thousand
instances, sent again for every change of one check.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul.api import ConsulApi
from discovery.consul.catalog_state import Records, ask_each
from discovery.consul.json import CheckState
from discovery.consul.watch import WAIT_S, TokenBucket, Turn, Watch
from discovery.errors import ConsulError, ConsulMalformed
from discovery.loop import Loop, backoff_s
from discovery.model import Change, Snapshot

log = structlog.get_logger(__name__)

# Looks for anything missed, though nothing should be.
SWEEP_EVERY_S = 30.0
SWEEP_CHUNK = 64
SUSPECT_RETRIES = 4
# Keepers notice within 10 s that a restarted agent has forgotten them.
GRACE_S = 15.0
Listener = Callable[[list[Change], Snapshot], None]
Checks = dict[tuple[str, str], CheckState]
T = TypeVar("T")


class View:
    """Follows the catalog; always answers from memory. `services` None follows all of them.

    Promises: an error, a hang or a broken answer of Consul leaves the last good state. A service loses its last instance
    only when the list of services and its health agree. After Consul was reset or out of reach, instances that are
    missing stay for `grace_s`, so that they can register again. Holds five connections: four for blocking queries, one for reads.

    Thread-safe. Callbacks run on the view's own thread, one at a time: while one runs, changes gather.
    """

    def __init__(
        self,
        api: ConsulApi,
        *,
        clock: Clock = SYSTEM_CLOCK,
        services: Iterable[str] | None = None,
        grace_s: float = GRACE_S,
        wait_s: float = WAIT_S,
    ) -> None:
        self._api = api
        self._clock = clock
        self._scope = None if services is None else frozenset(services)
        self._grace_s = grace_s
        self._listeners: list[Listener] = []
        self._ready = threading.Event()
        self._loop = Loop("view", self._turn, clock=clock)
        self._wake = threading.Condition()
        # What follows is guarded by _wake, and written by the watches.
        self._names: frozenset[str] | None = None
        self._checks: dict[str, Checks] = {"critical": {}, "warning": {}}
        self._dirty: set[str] = set()
        self._sweep_due = False
        self._moves = 0  # how often the list of services has moved
        self._hold_until = 0.0
        self._answered_at: dict[str, float] = {}
        self._failing: set[str] = set()
        self._sure = False  # whether what Consul answers is the present, and not its past
        # What follows belongs to the thread of _loop alone.
        self._records = Records()
        self._failures = 0
        self._retry: set[str] = set()
        self._retries = 0
        self._retry_at = 0.0
        self._looked = 0  # the move after which those that changed last were asked
        self._sweep_after = 0.0
        self._swept_at = clock.monotonic()
        # A sweep of a thousand services takes Consul 0.1 s: half of the time in the long run, all of it for a while.
        self._sweep_budget = TokenBucket(rate_per_s=0.5, burst=10.0, clock=clock)
        self._watches = self._make_watches(wait_s)

    def _make_watches(self, wait_s: float) -> list[Watch[frozenset[str]] | Watch[None] | Watch[Checks]]:
        def watch(
            name: str, fetch: Callable[[int, float], tuple[int, T]], on_answer: Callable[[T, Turn], None]
        ) -> Watch[T]:
            return Watch(
                name, fetch, on_answer, lambda _: self._on_error(name), clock=self._clock, wait_s=wait_s
            )

        def checks(state: str) -> Watch[Checks]:
            return watch(
                state,
                lambda index, wait: self._api.health_state(state, index, wait),
                lambda answer, turn: self._on_checks(state, answer, turn),
            )

        return [
            watch("services", self._api.catalog_services, self._on_names),
            watch("nodes", self._api.nodes_index, self._on_nodes),
            checks("critical"),
            checks("warning"),
        ]

    # -- reading

    def snapshot(self) -> Snapshot:
        """The last good state, at once."""
        return self._records.snapshot

    def ready(self, timeout_s: float = 0.0) -> bool:
        """Wait up to `timeout_s` for the first snapshot; returns whether there is one."""
        return self._ready.wait(timeout_s)

    def age_s(self) -> float:
        """Seconds since Consul last confirmed the whole of the snapshot; infinite before the first.

        While all is well it moves between 0 and the wait of a blocking query (10 s).
        """
        with self._wake:
            if not self._ready.is_set() or len(self._answered_at) < len(self._watches):
                return float("inf")
            return self._clock.monotonic() - min(self._answered_at.values())

    @property
    def healthy(self) -> bool:
        """Whether there is a snapshot and the last question to Consul of every kind was answered."""
        return self._ready.is_set() and not self._failing and not self._loop.failing

    def on_change(self, callback: Listener) -> None:
        """Call `callback(changes, snapshot)` after every change from now on."""
        self._listeners.append(callback)

    # -- life

    def start(self) -> None:
        for watch in self._watches:
            watch.start()
        self._loop.start()

    def stop(self) -> None:
        """Stop following, at once; `snapshot` keeps answering. No callback begins after this."""
        self._loop.stop()
        for watch in self._watches:
            watch.stop()
        with self._wake:
            self._wake.notify_all()

    # -- what the watches bring

    def _on_names(self, names: frozenset[str], turn: Turn) -> None:
        empty = not names and bool(self._names)
        if empty:
            self._confirm_empty()
        if self._scope is not None:
            names &= self._scope
        with self._wake:
            self._dirty |= names ^ (self._names or frozenset())
            self._names = names
            if turn != "same":
                self._moves += 1
                self._sweep_due = True
            if empty and self._ready.is_set():
                self._hold("empty")
            self._answered("services", turn)

    def _on_nodes(self, _: None, turn: Turn) -> None:
        """The indexes of a node's services move with its address: a sweep finds them."""
        with self._wake:
            self._sweep_due |= turn != "same"
            self._answered("nodes", turn)

    def _confirm_empty(self) -> None:
        """A 200 with nothing in it can come during an election: believed only when a leader stands behind it."""
        if not self._api.leader() or self._api.catalog_services(consistent=True)[1]:
            raise ConsulMalformed("an empty catalog that the leader does not confirm")

    def _hold(self, reason: str) -> None:
        now = self._clock.monotonic()
        if now >= self._hold_until:
            log.warning(
                "consul was away or reset, missing instances are kept", reason=reason, grace_s=self._grace_s
            )
        self._hold_until = now + self._grace_s

    def _on_checks(self, state: str, answer: Checks, turn: Turn) -> None:
        with self._wake:
            changed = {check for _, check in self._checks[state].items() ^ answer.items()}
            self._checks[state] = answer
            services = {check.service for check in changed if check.service}
            self._dirty |= services if self._scope is None else services & self._scope
            nodes = {check.node for check in changed if not check.service}
            if nodes:
                self._dirty |= self._records.on_nodes(nodes)
            self._answered(state, turn)

    def _answered(self, watch: str, turn: Turn) -> None:
        self._answered_at[watch] = self._clock.monotonic()
        self._failing.discard(watch)
        if turn in ("reset", "rejoined"):
            self._sweep_due = True
            if self._ready.is_set():
                self._hold(turn)
            self._sure = False
            self._hurry()
        self._wake.notify_all()

    def _hurry(self) -> None:
        """Consul answers again: no other query sits out a long backoff, while the time for what is missing runs down.

        Only after failures that went on for a while: hurrying the others for each answer would ask Consul hundreds of times
        a second when it stumbles over every other question.
        """
        self._loop.hurry()
        for watch in self._watches:
            if watch.name in self._failing:
                watch.hurry()

    def _on_error(self, watch: str) -> None:
        with self._wake:
            self._failing.add(watch)
            self._sure = False

    # -- the thread that reads what changed

    def _turn(self) -> float:
        self._wait()
        return 0.0 if self._loop.stopped else self._work()

    def _wait(self) -> None:
        with self._wake:
            while not self._loop.stopped and (self._names is None or not self._work_due()):
                self._wake.wait(self._idle_s())

    def _work_due(self) -> bool:
        now = self._clock.monotonic()
        if now - self._swept_at >= SWEEP_EVERY_S:
            self._sweep_due = True
        return bool(self._dirty) or self._looked != self._moves or any(now >= at for at in self._due_times())

    def _due_times(self) -> list[float]:
        """When there will be something to do, of the kinds that wait for a time."""
        times = [self._swept_at + SWEEP_EVERY_S] if not self._sweep_due else [self._sweep_after]
        if self._records.held:
            times.append(self._hold_until)
        if self._retry:
            times.append(self._retry_at)
        return times

    def _idle_s(self) -> float:
        return min(max(min(self._due_times()) - self._clock.monotonic(), 0.001), SWEEP_EVERY_S)

    def _work(self) -> float:
        """Read what is known to have changed, then look for what else has; returns how long to pause (seconds)."""
        try:
            self._be_sure()
            retry = self._read(self._take_dirty())
            self._publish()
            # From here on there is something to be kept, also when the next question finds no Consul any more.
            self._ready.set()
            retry |= self._look_first()
            retry |= self._sweep()
        except Exception as error:  # whatever it is: the next turn begins where this one ended
            return self._failed(error)
        self._put_off(retry)
        if self._failures:
            log.info("catalog reads recovered", failures=self._failures)
        self._failures = 0
        self._failing.discard("reads")
        return 0.0

    def _be_sure(self) -> None:
        """A server that was started a moment ago plays its log back, and answers with its past meanwhile: the instances of last
        week, as passing. Asked for what is certain it refuses until it has come to the end, and never goes back.
        """
        if not self._sure:
            self._sure = True
            self._api.catalog_services(consistent=True)

    def _put_off(self, retry: set[str]) -> None:
        """One service's broken answer delays no other: it is read again after a while of its own."""
        if not retry:
            self._retries = 0 if not self._retry else self._retries
            return
        self._retries += 1
        # The first times are the rule, not a fault: the two lists of a last instance that leaves do not change at once.
        if self._retries == SUSPECT_RETRIES:
            log.warning("services keep their last state", services=sorted(retry)[:5], count=len(retry))
        self._retry |= retry
        self._retry_at = self._clock.monotonic() + backoff_s(self._retries, self._clock)

    def _take_dirty(self) -> set[str]:
        now = self._clock.monotonic()
        with self._wake:
            if self._records.held and now >= self._hold_until:
                self._dirty |= self._records.held
                self._records.held.clear()
            if self._retry and now >= self._retry_at:
                self._dirty |= self._retry
                self._retry.clear()
            dirty, self._dirty = self._dirty, set()
            return dirty

    def _failed(self, error: Exception) -> float:
        if not self._failures:
            bug = None if isinstance(error, ConsulError) else error
            log.warning("catalog reads failed", error=repr(error)[:300], exc_info=bug)
        self._failures += 1
        self._failing.add("reads")
        self._sure = False
        # A read can be the first to reach a Consul that came back empty, before any watch has noticed. Twice in a row,
        # because a connection that was closed while idle fails once.
        if self._failures > 1 and self._ready.is_set():
            with self._wake:
                self._hold("unread")
        return backoff_s(self._failures, self._clock)

    def _look_first(self) -> set[str]:
        """After a change of the list, ask those that changed last: a deploy changes one service many times in a row.

        They need not wait for a sweep that is under way, nor for its budget. Returns which to read again.
        """
        with self._wake:
            if self._looked == self._moves:
                return set()
            self._looked = self._moves
            names = self._names or frozenset()
        return self._look(self._records.latest(names, SWEEP_CHUNK))

    def _look(self, names: Sequence[str]) -> set[str]:
        """Ask for the index of each service, and read those whose index has changed; returns which to read again."""
        reads = ask_each(names, self._api.service_index, self._clock)
        moved = {read.service for read in reads if self._records.moved(read)}
        # What a watch has named meanwhile goes along.
        retry = self._read(moved | self._take_dirty())
        self._publish()
        return retry

    def _sweep(self) -> set[str]:
        """Look at all services; returns which to read again."""
        with self._wake:
            if not self._sweep_due or self._clock.monotonic() < self._sweep_after:
                return set()
            self._sweep_due = False
            names = sorted(self._names or ())
        began = self._clock.monotonic()
        retry: set[str] = set()
        try:
            retry |= self._read(self._records.unlisted(names))
            for start in range(0, len(names), SWEEP_CHUNK):
                retry |= self._look(names[start : start + SWEEP_CHUNK])
                retry |= self._look_first()
        except Exception:
            with self._wake:
                self._sweep_due = True
                self._dirty |= retry
            raise
        now = self._swept_at = self._clock.monotonic()
        self._sweep_after = now + self._sweep_budget.take(now - began)
        return retry

    def _read(self, services: set[str]) -> set[str]:
        """Read services again; returns those without a usable answer. Where it raises, all of them stay to be read."""
        names, left = sorted(services), set(services)
        retry: set[str] = set()
        try:
            for read in ask_each(names, self._api.read_service, self._clock):
                with self._wake:
                    listed = read.service in (self._names or ())
                    hold = self._clock.monotonic() < self._hold_until
                if not self._records.accept(read, listed=listed, hold=hold):
                    retry.add(read.service)
                left.discard(read.service)
        except Exception:
            with self._wake:
                self._dirty |= left | retry
            raise
        return retry

    def _publish(self) -> None:
        changes = self._records.publish()
        if not changes:
            return
        for callback in self._listeners:
            if self._loop.stopped:
                return
            try:
                callback(changes, self._records.snapshot)
            except Exception:  # one listener's bug must not stop the others, nor the view
                log.exception("change listener failed")
