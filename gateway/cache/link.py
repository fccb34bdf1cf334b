"""The one thread that keeps in touch with Redis: it hears of changes, notices that Redis has gone or is back, makes up for
the changes that Redis has missed, and keeps the leases up."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import OutOfMemoryError, RedisError

from discovery.clock import Clock
from discovery.loop import Loop
from gateway.cache.memory import Memory
from gateway.cache.store import Leases
from gateway.cache.trust import would_know
from gateway.redis_link import listen
from services.kit.redis_client import Away, Circuit
from services.kit.stale.stored_form import (
    CHANGED_PATTERN,
    Change,
    changed_channel,
    read_change,
    service_of_channel,
)
from services.kit.stale.writer import note_changes

log = structlog.get_logger(__name__)

BEAT_S = 0.25
# An answer to a heartbeat that takes longer does not count.
PATIENCE_S = 0.5
# Redis must answer so often in a row before it is used again: the others make up for their changes in the meantime.
PROBES = 2
MAX_PENDING = 2048


class Link:
    """`heard` is until when (monotonic) all changes that Redis published are known here, `since` from when on; 0 while nothing is heard."""

    def __init__(
        self,
        redis: Redis | None,
        circuit: Circuit,
        memory: Memory,
        leases: Leases,
        clock: Clock,
        *,
        probe_key: str,
    ) -> None:
        self._redis = redis
        self._circuit = circuit
        self._memory = memory
        self._leases = leases
        self._clock = clock
        self._probe_key = probe_key
        self._lock = threading.Lock()
        # Whether the others have heard of it.
        self._pending: dict[tuple[str, Change], bool] = {}
        self._probes = 0
        self._loop = Loop("cache-link", self._turn)
        self.heard = 0.0
        self.since = 0.0

    def start(self) -> None:
        """In the worker, once."""
        if self._redis is not None:
            self._loop.start()

    def stop(self) -> None:
        self._loop.stop()
        self._loop.join(2.0)

    def trusts(self, checked: float, now: float) -> bool:
        """Whether what was asked for at `checked` would be known here to hold no more."""
        return would_know(checked, now, heard=self.heard, since=self.since)

    def miss(self, service: str, change: Change, *, published: bool = False) -> None:
        """Redis has not noted a change: until it has, nothing is read from it. `published`: the others know."""
        with self._lock:
            self._pending[(service, change)] = published
            if len(self._pending) > MAX_PENDING:
                services = {each for each, _ in self._pending}
                self._pending = {(each, Change("/", prefix=True)): False for each in services}
        self._circuit.open("changes are not noted")

    # -- the thread

    def _turn(self) -> float:
        try:
            self._listen()
        except (RedisError, OSError) as error:
            self._probes = 0
            self._circuit.open(error)
        finally:
            self.since = 0.0
        return BEAT_S

    def _listen(self) -> None:
        assert self._redis is not None
        with self._redis.pubsub() as channel:  # type: ignore[no-untyped-call]
            channel.psubscribe(CHANGED_PATTERN)
            tended = self._clock.monotonic()
            for message, heard in listen(channel, self._clock, beat_s=BEAT_S, silent_s=PATIENCE_S):
                if self._loop.stopped:
                    return
                self.heard, now = heard, self._clock.monotonic()
                if message is not None:
                    self._heed(message, now)
                if now - tended >= BEAT_S:
                    tended = now
                    self._tend()

    def _heed(self, message: dict[str, Any], now: float) -> None:
        if message["type"] == "psubscribe":
            self.since = now
            return
        service = service_of_channel(message["channel"].decode("latin-1"))
        change = read_change(message["data"]) if service is not None else None
        if service is None or change is None:
            log.warning("message not understood", channel=str(message["channel"])[:80])
            return
        self._memory.change(service, change)
        if change.noted:
            return
        # By a program that only publishes, or by one that Redis refused: every gateway notes it.
        noted = Change(change.path, change.prefix)
        try:
            self._circuit.attempt(partial(_note, service, [noted]))
        except Away:
            self.miss(service, noted, published=True)
        else:
            self._memory.change(service, noted)  # what was read from Redis in between

    def _tend(self) -> None:
        """Keep up the leases, make up for what Redis has missed, and open or close the circuit by what it answers."""
        if self._circuit.closed and not self._pending:
            with contextlib.suppress(Away):
                self._circuit.attempt(self._leases.keep_up)
            return
        try:
            self._make_up()
            self._circuit.attempt(self._leases.keep_up)
            self._circuit.attempt(self._probe)
        except Away:
            self._probes = 0
            self._circuit.open("still away")
            return
        self._probes += 1
        if self._probes >= PROBES:
            self._probes = 0
            self._circuit.close()

    def _probe(self, redis: Redis) -> None:
        try:
            redis.set(self._probe_key, b"1", px=1000)
        except OutOfMemoryError:
            return  # full, but what is stored can be deleted

    def _make_up(self) -> None:
        """Publish what the others have not heard, which even a Redis that stores nothing passes on; then note it. Raises Away."""
        with self._lock:
            waiting = dict(self._pending)
        for key, published in waiting.items():
            if not published:
                self._circuit.attempt(partial(_publish, *key))
                with self._lock:
                    self._pending[key] = True
        for service in {each for each, _ in waiting}:
            changes = [change for each, change in waiting if each == service]
            self._circuit.attempt(partial(_note, service, changes))
            with self._lock:
                for change in changes:
                    self._pending.pop((service, change), None)


def _publish(service: str, change: Change, redis: Redis) -> None:
    redis.publish(changed_channel(service), replace(change, noted=False).message())


def _note(service: str, changes: list[Change], redis: Redis) -> None:
    note_changes(redis, service, changes, publish=False)
