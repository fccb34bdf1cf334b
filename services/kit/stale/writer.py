"""What is to be written to Redis besides the requests: a bounded queue, and the one thread that empties it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog
from prometheus_client import Counter
from redis import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from services.kit.redis_client import Away, Circuit
from services.kit.stale import stored_form

log = structlog.get_logger(__name__)

# Answers, each of up to `MAX_BODY_BYTES`: 16 MiB.
MAX_WAITING = 64
# What must not be lost while Redis is away: removals and changes. Beyond it the oldest go.
MAX_OWED = 4096
BATCH = 32
PAUSE_S = 0.5
# Longer than a request and its place in the queue take: what was read before a removal is not kept after it.
GONE_MS = 60_000

# Kept unless its path or subject was forgotten a moment ago. The hash lives as long as its longest answer.
_KEEP = """
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
"""


@dataclass(frozen=True, slots=True)
class Keep:
    """A good answer; sealed when it is written, not in the request."""

    name: stored_form.StaleName
    head: Mapping[str, Any]
    body: bytes
    stale_s: float


@dataclass(frozen=True, slots=True)
class Remove:
    """What is kept under this name holds no more."""

    name: stored_form.StaleName


Place = tuple[str, str]
# A key to be forgotten, or a service and its change.
Owed = str | tuple[str, stored_form.Change]


class StaleQueue:
    """Jobs for one Redis. The thread is started by the first job, so in the worker; it ends with the process.

    Answers may be lost: the newest, when too many wait, and those that a Redis gone does not take. What forgets them waits
    for Redis instead, and comes first.
    """

    def __init__(self, redis: Redis, *, outcomes: Counter | None = None) -> None:
        self._circuit = Circuit(redis, "last good answers")
        self._outcomes = outcomes
        self._wake = threading.Condition()
        self._waiting: dict[Place, Keep | Remove] = {}
        # In the order in which they came, each once.
        self._owed: dict[Owed, None] = {}
        self._thread: threading.Thread | None = None

    def put(self, job: Keep | Remove) -> bool:
        """Add a job, in place of one that waits for the same name. False when it is dropped."""
        place = (job.name.key, job.name.slot)
        with self._wake:
            if place in self._waiting or len(self._waiting) < MAX_WAITING:
                self._waiting[place] = job
                self._start()
                return True
        self._count("dropped", 1)
        return False

    def forget(self, key: str) -> None:
        """Delete a hash of stored answers, and keep out what is on its way to it."""
        with self._wake:
            for place in [each for each in self._waiting if each[0] == key]:
                del self._waiting[place]
        self._owe(key)

    def change(self, service: str, change: stored_form.Change) -> None:
        """Note and publish a change of the service."""
        self._owe((service, change))

    def idle(self) -> bool:
        """Whether nothing waits."""
        with self._wake:
            return not self._waiting and not self._owed

    def _owe(self, job: Owed) -> None:
        with self._wake:
            self._owed[job] = None
            while len(self._owed) > MAX_OWED:
                del self._owed[next(iter(self._owed))]
                self._count("lost", 1)
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stale", daemon=True)
            self._thread.start()
        self._wake.notify()

    # -- the thread

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._owed)
                # Left in its place until it is done: `idle` must not say so before.
                owed = list(self._owed)[:BATCH]
                kept = [] if owed else list(self._waiting.items())[:BATCH]
            try:
                self._circuit.attempt(partial(self._forget, owed) if owed else partial(self._write, kept))
                self._circuit.close()
            except Exception as error:  # the thread must outlive whatever it meets
                if not isinstance(error, Away):
                    log.exception("writing failed", error=type(error).__name__)
                self._count("failed", len(kept))
                self._remove([], kept)
                time.sleep(PAUSE_S)
            else:
                self._remove(owed, kept)

    def _remove(self, owed: list[Owed], kept: list[tuple[Place, Keep | Remove]]) -> None:
        with self._wake:
            for debt in owed:
                self._owed.pop(debt, None)
            for place, job in kept:
                if self._waiting.get(place) is job:
                    del self._waiting[place]

    def _write(self, jobs: list[tuple[Place, Keep | Remove]], redis: Redis) -> None:
        pipe = redis.pipeline(transaction=False)
        for _, job in jobs:
            name = job.name
            if isinstance(job, Remove):
                pipe.hdel(name.key, name.slot)
                continue
            sealed = stored_form.seal(name.whole, job.head, job.body)
            keys = (name.key, stored_form.gone_key(name.key))
            pipe.eval(_KEEP, 2, *keys, name.slot, sealed, max(1, int(job.stale_s * 1000)))
        results = pipe.execute(raise_on_error=False)
        for (_, job), result in zip(jobs, results, strict=True):
            if isinstance(result, Exception):
                self._make_room(redis, job.name.key, result)
            else:
                self._count("removed" if isinstance(job, Remove) else "stored" if result else "refused", 1)

    def _make_room(self, redis: Redis, key: str, error: Exception) -> None:
        """One job failed. A key of a wrong type is mischief: make room for the next answer."""
        if "WRONGTYPE" in str(error):
            redis.delete(key)
        elif not isinstance(error, OutOfMemoryError):
            raise error
        self._count("failed", 1)

    def _forget(self, jobs: list[Owed], redis: Redis) -> None:
        """Raises RedisError where one of them could not be done: then they are all tried again."""
        for job in jobs:
            if isinstance(job, str):
                forget(redis, job)
                self._count("forgotten", 1)
            else:
                service, change = job
                note_changes(redis, service, [change])

    def _count(self, outcome: str, number: int) -> None:
        if self._outcomes is not None and number:
            self._outcomes.labels(outcome).inc(number)


def forget(redis: Redis, key: str) -> None:
    """Delete a hash of stored answers, and keep out what is on its way to it. Raises RedisError."""
    # A full Redis takes no mark, and no answers either.
    with contextlib.suppress(OutOfMemoryError):
        redis.set(stored_form.gone_key(key), b"1", px=GONE_MS)
    redis.delete(key)


def note_changes(
    redis: Redis, service: str, changes: Sequence[stored_form.Change], *, publish: bool = True
) -> None:
    """Make what is stored of the changes' paths invalid for all gateways, and publish it to them. One round trip. Raises RedisError.

    Where Redis takes nothing new, all that is stored of the service goes: deleting is always allowed to a full one. One that
    takes not even that still passes on what has changed: then the gateways read nothing from it.
    """
    key, channel = stored_form.versions_key(service), stored_form.changed_channel(service)
    pipe = redis.pipeline(transaction=False)
    for change in changes:
        pipe.hset(key, stored_form.bucket(change.path, prefix=change.prefix), stored_form.word(time.time()))
    for change in changes if publish else ():
        pipe.publish(channel, change.message())
    results = pipe.execute(raise_on_error=False)
    errors = [result for result in results if isinstance(result, Exception)]
    if not errors:
        return
    try:
        if not all(isinstance(each, OutOfMemoryError) or "WRONGTYPE" in str(each) for each in errors):
            raise errors[0]
        redis.delete(key)
    except ResponseError:
        for change in changes if publish else ():
            redis.publish(channel, replace(change, noted=False).message())
        raise
