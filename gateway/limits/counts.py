"""Counts of requests that the gateways share through Redis, without asking it on the way of a request.

A process counts in its own memory and settles with Redis in the background: it adds what it has counted, and learns what all
have. So two processes let through more than a limit by what comes between two settlements: at most `SETTLE_S` of a subject's
requests, and little more than `SPACING_S` of them near the limit, since who has used a share of what was left is settled at once.

Redis slow, full, read-only, emptied or gone costs requests nothing: each process goes on from what it last knew, and counts
for itself. What Redis has missed or lost, each adds again once it is back, as far as it was its own.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from limits import RateLimitItem
from limits.storage import RedisStorage
from redis import Redis
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

PREFIX = "gateway:shared:limits"
SETTLE_S = 0.1
SPACING_S = 0.01
# Of what is left, used here since the last settlement. Eight processes may use up the rest without hearing of each other.
URGENT_SHARE = 0.125
# After a failure nothing is tried for so long.
AWAY_S = 1.0
# Counts in one pipeline: it has to be over within the client's timeout.
BATCH = 500
# What is remembered for a Redis that is away; what is beyond it is added with the subject's next request.
MAX_DIRTY = 50_000
DAY_S = 86_400


class Count:
    """How often one subject has asked under one policy, in the current window. Belongs to a `Counts`, under its lock.

    Windows are fixed: of a day or more they begin at midnight UTC, shorter ones at a moment that differs from subject to
    subject, so that those who were refused do not all come back at once.
    """

    __slots__ = (
        "dirty",
        "item",
        "known",
        "mine",
        "number",
        "offset_s",
        "owed",
        "pending",
        "repaired",
        "subject",
        "urgent_at",
        "window_s",
    )

    def __init__(self, item: RateLimitItem, subject: str, phase: float) -> None:
        """`subject` is what Redis may see; `phase` from [0, 1) says when windows begin."""
        self.item = item
        self.subject = subject
        self.window_s = item.get_expiry()
        self.offset_s = phase * self.window_s if self.window_s < DAY_S else 0.0
        self.dirty = False
        self._begin(-1)

    def _begin(self, number: int) -> None:
        self.number = number
        # What all had counted at the last settlement, with all that was ours then; and what has come since.
        self.known = 0
        self.pending = 0
        # Ours of it; what of that Redis turned out to have lost; and whether it was added again.
        self.mine = 0
        self.owed = 0
        self.repaired = False
        # At the first request it is high time to learn what others have counted.
        self.urgent_at: float = 1

    def used(self, now: float) -> int:
        """Requests in the window that `now` (Unix time) falls into, as far as they are known here."""
        number = self.window(now)
        # A moment ago may have been the window before; a clock that was put back further counts.
        if number > self.number or number < self.number - 1:
            self._begin(number)
        return self.known + self.pending

    def window(self, now: float) -> int:
        return int((now + self.offset_s) // self.window_s)

    def left_s(self, now: float) -> float:
        """Seconds until the window ends."""
        return self.window_s - (now + self.offset_s) % self.window_s

    def take(self) -> int:
        """What is to be added in Redis now."""
        amount = self.pending + self.owed
        self.known += self.pending
        self.mine += self.pending
        self.pending = self.owed = 0
        return amount

    def settled(self, total: int, added: int) -> bool:
        """Redis has `total`, with the `added` of ours; answers whether it lacks something that we have to add."""
        if total >= self.known:
            self.known, self.repaired = total, False
        elif not self.repaired:
            # Only once: what is missing after that is others' to add.
            self.owed = max(0, min(self.known - total, self.mine - added))
            self.repaired = True
        self.urgent_at = self.known + max(1, int((self.item.amount - self.known) * URGENT_SHARE))
        return self.owed > 0

    def missed(self) -> None:
        """Whether Redis has what was taken is not known: the next settlement will tell."""
        self.repaired = False
        self.urgent_at = math.inf


@dataclass(frozen=True, slots=True)
class _Job:
    count: Count
    number: int
    added: int
    key: str


class Counts:
    """The counts of one process. Thread-safe. `start` in the worker, after its fork; without it nothing is shared.

    `now` is Unix time. Without `redis` everything stays local.
    """

    def __init__(
        self,
        redis: Redis | None,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._storage = _storage(redis) if redis is not None else None
        self._now = now
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._dirty: list[Count] = []
        self._urgent = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._away = False
        self._away_until = 0.0

    @property
    def away(self) -> bool:
        """Whether Redis did not answer as it should when it was asked last."""
        return self._away

    def admit(self, counts: Sequence[Count], now: float) -> tuple[bool, list[int]]:
        """Count one request under each, unless one of them is used up; answers whether, and what each had left before."""
        urgent = False
        with self._lock:
            left = [count.item.amount - count.used(now) for count in counts]
            if min(left) <= 0:
                return False, left
            for count in counts:
                count.pending += 1
                if not count.dirty:
                    count.dirty = True
                    self._dirty.append(count)
                urgent = urgent or count.known + count.pending >= count.urgent_at
        if urgent and not self._urgent.is_set():
            self._urgent.set()
        return True, left

    def start(self) -> None:
        """Settle from now on, in a thread of this process."""
        if self._storage is None or self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="limits", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Settle a last time, and end."""
        self._stop.set()
        self._urgent.set()
        if self._thread is not None:
            self._thread.join(2.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._urgent.wait(SETTLE_S)
            self._urgent.clear()
            self._settle_safely()
            self._stop.wait(SPACING_S)
        self._settle_safely()

    def _settle_safely(self) -> None:
        try:
            self.settle()
        except Exception as error:  # a thread that ends would share nothing from then on
            log.error("settling failed", error=type(error).__name__, exc_info=error)

    def settle(self) -> None:
        """Add in Redis what has been counted since the last time, and learn what others have."""
        if self._storage is None or self._monotonic() < self._away_until:
            return
        for batch in self._take():
            totals = self._add(batch)
            with self._lock:
                for job, total in zip(batch, totals, strict=True):
                    self._apply(job, total)

    def _take(self) -> list[list[_Job]]:
        assert self._storage is not None
        with self._lock:
            dirty, self._dirty = self._dirty, []
            now = self._now()
            jobs = []
            for count in dirty:
                count.dirty = False
                if count.window(now) > count.number + 1:
                    continue  # a window that ended while Redis was away
                key = self._storage.prefixed_key(count.item.key_for(count.subject, count.number))
                jobs.append(_Job(count, count.number, count.take(), key))
        return [jobs[at : at + BATCH] for at in range(0, len(jobs), BATCH)]

    def _apply(self, job: _Job, total: int | None) -> None:
        count = job.count
        if count.number != job.number:
            return  # its window has ended
        if total is None:
            count.missed()
        elif not count.settled(total, job.added):
            return
        if not count.dirty and len(self._dirty) < MAX_DIRTY:
            count.dirty = True
            self._dirty.append(count)

    def _add(self, jobs: Sequence[_Job]) -> list[int | None]:
        """New totals; None where Redis gave none."""
        if self._monotonic() < self._away_until:
            return [None] * len(jobs)
        assert self._redis is not None
        assert self._storage is not None
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for job in jobs:
                    self._storage.lua_incr_expire([job.key], [job.count.window_s, job.added], client=pipe)
                answers = pipe.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            answers = [error] * len(jobs)
        failed = next((each for each in answers if isinstance(each, Exception)), None)
        self._seen(failed)
        return [None if isinstance(each, Exception) else int(each) for each in answers]

    def _seen(self, failed: Exception | None) -> None:
        was, self._away = self._away, failed is not None
        if failed is not None:
            self._away_until = self._monotonic() + AWAY_S
            if not was:
                log.warning("limits are local now", error=type(failed).__name__, reason=str(failed)[:200])
        elif was:
            log.info("limits are shared again")


def _storage(redis: Redis) -> RedisStorage:
    return RedisStorage("redis://", connection_pool=redis.connection_pool, key_prefix=PREFIX)
