"""Counts of requests that the gateways share through Redis, without asking it on the way of a request.

A process counts in its own memory and settles with Redis in the background: it sets how much it has let through itself, in a
field of its own of the subject's hash, and learns what the others have. So two processes let through more than a limit by what
comes between two settlements: at most `SETTLE_S` of a subject's requests, and little more than `SPACING_S` of them near the
limit, since a count that has used a share of what was left is settled at once.

Redis slow, full, read-only, emptied or gone costs requests nothing: each process goes on from what it last knew, and counts
for itself. What Redis has missed or lost, each sets again once it is back.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from limits import RateLimitItem

from discovery.loop import Loop
from gateway.redis_link import Away, RedisLink

log = structlog.get_logger(__name__)

PREFIX = "gateway:shared:limits"
SETTLE_S = 0.1
SPACING_S = 0.01
# Of what is left, used here since the last settlement. Eight processes may use up the rest without hearing of each other.
URGENT_SHARE = 0.125
# After a failure the next settlement waits for so long.
AWAY_S = 1.0
# Counts in one pipeline: it has to be over within the client's timeout.
BATCH = 500
# What is remembered for a Redis that is away; what is beyond it is added with the subject's next request.
MAX_DIRTY = 50_000
DAY_S = 86_400


class Count:
    """How often one subject has asked under one policy, in the current window. Belongs to a `Counts`, under its lock.

    Windows are fixed: of a day or more they begin at midnight UTC, shorter ones at a moment that differs from subject to
    subject, so that refused callers do not all come back at once.
    """

    def __init__(self, item: RateLimitItem, name: str, phase: float) -> None:
        """`name` is what Redis may know the subject and policy by; `phase` from [0, 1) says when windows begin."""
        self.name = name
        self.most = item.amount
        self.window_s = item.get_expiry()
        self.offset_s = phase * self.window_s if self.window_s < DAY_S else 0.0
        self.dirty = False
        self._begin(-1)

    def _begin(self, number: int) -> None:
        self.number = number
        # What was let through here, and elsewhere as far as it is known here.
        self.mine = self.others = 0
        # A new one for each: a count that was dropped and begun again must not take away from what it was before.
        self.field = secrets.token_hex(4)
        # At the first request it is high time to learn what others have counted.
        self.urgent_at: float = 1

    @property
    def key(self) -> str:
        """Where Redis has the count of the current window."""
        return f"{PREFIX}:{self.name}:{self.number}"

    def used(self, now: float) -> int:
        """Requests in the window that `now` (Unix time) falls into, as far as they are known here."""
        number = self.window(now)
        # A moment ago may have been the window before; a clock that was put back further counts.
        if number > self.number or number < self.number - 1:
            self._begin(number)
        return self.mine + self.others

    def window(self, now: float) -> int:
        return int((now + self.offset_s) // self.window_s)

    def left_s(self, now: float) -> float:
        """Seconds until the window ends."""
        return self.window_s - (now + self.offset_s) % self.window_s

    def settled(self, total: int, sent: int) -> None:
        """Redis has `total`, with the `sent` of ours. What it has lost of the others' they will set again: it still counts."""
        self.others = max(self.others, total - sent)
        used = self.mine + self.others
        self.urgent_at = used + max(1, int((self.most - used) * URGENT_SHARE))


# A count, the number of its window, its key and field in Redis, and what we have of it.
Job = tuple[Count, int, str, str, int]


class Counts:
    """The counts of one process. Thread-safe. `start` in the worker, after its fork; without it nothing is shared.

    `now` is Unix time. Without a Redis everything stays local.
    """

    def __init__(self, link: RedisLink, now: Callable[[], float] = time.time) -> None:
        self._link = link
        self._now = now
        self._lock = threading.Lock()
        self._dirty: list[Count] = []
        self._loop = Loop("limits", self._turn)
        # Whether Redis did not do what it was asked last.
        self.away = False

    def admit(self, counts: Sequence[Count], now: float) -> tuple[bool, list[int]]:
        """Count one request under each, unless one of them is used up; returns whether, and what each had left before."""
        urgent = False
        with self._lock:
            left = [count.most - count.used(now) for count in counts]
            if min(left) <= 0:
                return False, left
            for count in counts:
                count.mine += 1
                self._mark(count)
                urgent = urgent or count.mine + count.others >= count.urgent_at
        if urgent and not self.away:
            self._loop.hurry()
        return True, left

    def start(self) -> None:
        """Settle from now on, in a thread of this process."""
        if self._link.exists:
            self._loop.start()

    def stop(self) -> None:
        """Settle a last time, and end."""
        self._loop.stop()
        self._loop.join(2.0)
        if self._link.exists:
            self.settle()

    def _turn(self) -> float:
        time.sleep(SPACING_S)
        self.settle()
        return AWAY_S if self.away else SETTLE_S

    def settle(self) -> None:
        """Set in Redis what has been counted since the last time, and learn what others have."""
        jobs = self._take()
        for at in range(0, len(jobs), BATCH):
            batch = jobs[at : at + BATCH]
            totals = self._exchange(batch)
            with self._lock:
                for job, total in zip(batch, totals, strict=True):
                    self._apply(job, total)

    def _exchange(self, jobs: Sequence[Job]) -> list[int | None]:
        """What all have; None where Redis does not say."""

        def fill(pipe: Any) -> None:
            for count, _, key, field, mine in jobs:
                pipe.hset(key, field, mine)
                pipe.expire(key, count.window_s, nx=True)
                pipe.hvals(key)

        try:
            answers = self._link.send(fill)
        except Away as error:
            answers = [error] * 3 * len(jobs)
        failed = next((each for each in answers if isinstance(each, Exception)), None)
        if failed is not None and not self.away:
            log.warning("limits are local now", error=type(failed).__name__, reason=str(failed)[:200])
        elif failed is None and self.away:
            log.info("limits are shared again")
        self.away = failed is not None
        pairs = zip(answers[::3], answers[2::3], strict=True)
        return [
            None if isinstance(set_, Exception) or isinstance(values, Exception) else sum(map(int, values))
            for set_, values in pairs
        ]

    def _take(self) -> list[Job]:
        with self._lock:
            dirty, self._dirty = self._dirty, []
            for count in dirty:
                count.dirty = False
            now = self._now()
            # Not those of a window that ended while Redis was away.
            current = [count for count in dirty if count.window(now) <= count.number + 1]
            return [(each, each.number, each.key, each.field, each.mine) for each in current]

    def _apply(self, job: Job, total: int | None) -> None:
        count, number, _, _, sent = job
        if count.number != number:
            return  # its window has ended
        if total is not None:
            count.settled(total, sent)
            return
        count.urgent_at = math.inf
        if len(self._dirty) < MAX_DIRTY:
            self._mark(count)

    def _mark(self, count: Count) -> None:
        if not count.dirty:
            count.dirty = True
            self._dirty.append(count)
