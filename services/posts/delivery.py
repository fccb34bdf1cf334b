"""Telling users how many posts an author has: at once after the commit, and again until it is known."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Protocol
from urllib.parse import quote

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.errors import CallError
from services.kit.db.session import Database
from services.posts import idempotency, outbox
from services.posts.domain import AuthorCount, retry_delay_s

log = structlog.get_logger(__name__)

# A reader who asks users right after the answer should see the new count; a hanging users must not hold posts up.
AT_ONCE_S = 0.4
IN_BACKGROUND_S = 2.0
TURN_S = 1.0
BATCH = 20
# After users were away for long: that many batches in a row before the next pause.
MAX_TURNS = 50
PURGE_EVERY_S = 300.0
MAX_PURGES = 100

# An author that users do not know may only be a moment younger than his first post; after about six minutes he is not.
MAX_REFUSALS = 10


class Client(Protocol):
    """What is used of the kit's client."""

    def request(self, method: str, service: str, path: str, **options: Any) -> Any: ...


class Outcome(Enum):
    """What became of a delivery: users know the count, refuse this one, or cannot be asked at all now."""

    KNOWN = auto()
    REFUSED = auto()
    AWAY = auto()


class CountDelivery:
    """Delivers owed counts. Each write is a short transaction of its own: nothing is locked during a call."""

    def __init__(self, db: Database, client: Callable[[], Client], clock: Clock = SYSTEM_CLOCK) -> None:
        """`client` is asked for at each call: the kit makes it at first use, in the worker process."""
        self._db = db
        self._client = client
        self._clock = clock

    def now_us(self) -> int:
        return int(self._clock.time() * 1_000_000)

    def warm_up(self) -> None:
        """Make the client now, so that the first post does not wait for its view of Consul."""
        self._client()

    def at_once(self, author_id: str, deadline_s: float) -> None:
        """Try once, right after the commit. Never raises: what stays owed is the flusher's."""
        try:
            with self._db.session(read_only=True) as session:
                owed = outbox.owed_count(session, author_id)
            if owed is not None and self._tell(owed, min(AT_ONCE_S, deadline_s)) is Outcome.KNOWN:
                with self._db.session() as session:
                    outbox.settle_count(session, owed)
        except Exception as error:  # the post is made: nothing that happens here may deny it
            log.warning("count not delivered at once", author=author_id, error=type(error).__name__)

    def turn(self) -> int:
        """Deliver what is overdue, at most a batch, and stop when users cannot be asked; how many they know now.

        Instances that share the database do not deliver the same count twice: each is claimed by a conditional
        update first, for as long as a call may last.
        """
        with self._db.session(read_only=True) as session:
            due = outbox.due_counts(session, self.now_us(), BATCH)
        told = 0
        for author_id, due_us in due:
            until_us = self.now_us() + int(2 * IN_BACKGROUND_S * 1_000_000)
            with self._db.session() as session:
                owed = outbox.claim_count(session, author_id, due_us, until_us)
            if owed is None:
                continue
            outcome = self._tell(owed, IN_BACKGROUND_S)
            self._record(owed, outcome)
            if outcome is Outcome.AWAY:
                break
            told += outcome is Outcome.KNOWN
        return told

    def _record(self, owed: AuthorCount, outcome: Outcome) -> None:
        with self._db.session() as session:
            if outcome is Outcome.KNOWN:
                outbox.settle_count(session, owed)
            elif outcome is Outcome.REFUSED and owed.attempts >= MAX_REFUSALS:
                log.error("count given up", author=owed.author_id, attempts=owed.attempts)
                outbox.settle_count(session, owed)
            else:
                delay_s = retry_delay_s(owed.attempts, self._clock.random())
                outbox.postpone_count(session, owed, self.now_us() + int(delay_s * 1_000_000))

    def purge(self) -> None:
        """Forget idempotency keys whose day is over, in short transactions, and not without end."""
        for _ in range(MAX_PURGES):
            with self._db.session() as session:
                if idempotency.purge(session, self.now_us()) < idempotency.PURGE_BATCH:
                    return

    def _tell(self, owed: AuthorCount, deadline_s: float) -> Outcome:
        path = f"/internal/users/{quote(owed.author_id, safe='')}/post-count"
        body = {"count": owed.count, "version": owed.version}
        try:
            answer = self._client().request("POST", "users", path, json=body, deadline_s=deadline_s)
        except CallError as error:
            log.info("count not delivered", author=owed.author_id, error=type(error).__name__)
            return Outcome.AWAY
        if answer.status < 300:
            return Outcome.KNOWN
        log.warning("count refused", author=owed.author_id, status=answer.status)
        # 401 and 403 are about this service's token, not about this author.
        return Outcome.AWAY if answer.status >= 500 or answer.status in (401, 403, 429) else Outcome.REFUSED


class Flusher:
    """Calls `turn` about once a second in a daemon thread. An error is logged once and costs a turn.

    It ends with its process, in the middle of a delivery or not: what was claimed is due again when the claim is over.
    """

    def __init__(self, delivery: CountDelivery, clock: Clock = SYSTEM_CLOCK) -> None:
        self._delivery = delivery
        self._clock = clock
        self._failing = False
        self._purge_at = 0.0

    def start(self) -> None:
        """Begin. Call it in the worker process: threads do not survive a fork."""
        threading.Thread(target=self._run, name="count-flusher", daemon=True).start()

    def _run(self) -> None:
        self._guarded(self._delivery.warm_up)
        while True:
            # Jitter keeps instances that were started together from asking together.
            self._clock.sleep(TURN_S * (0.5 + self._clock.random()))
            self._guarded(self._work)

    def _work(self) -> None:
        for _ in range(MAX_TURNS):
            if self._delivery.turn() < BATCH:
                break
        if self._clock.monotonic() >= self._purge_at:
            self._purge_at = self._clock.monotonic() + PURGE_EVERY_S
            self._delivery.purge()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
            self._failing = False
        except Exception as error:  # the thread must outlive whatever it meets
            if not self._failing:
                log.error("flushing counts failed", error=type(error).__name__, reason=str(error)[:200])
            self._failing = True
