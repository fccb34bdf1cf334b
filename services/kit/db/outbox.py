"""What is owed to another service: noted in the transaction that brings it about, and delivered until it has arrived.

A service keeps it in a table of its own (`class OutboxRow(Owing, Base)`). One row a key: a later note takes the place of an
earlier one. It arrives at least once; several instances may share the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import BigInteger, Column, Integer, String, Text, delete, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.errors import CallError
from services.kit.db.portable import upsert, write
from services.kit.db.session import Database

log = structlog.get_logger(__name__)

# A client that asks the other service right after the answer should see the change; one that hangs must not hold its caller up.
AT_ONCE_S = 0.5
IN_BACKGROUND_S = 2.0
# The request itself delivers right after the commit; until then the job leaves it alone.
FIRST_S = 3.0
RETRY_MAX_S = 30.0
BATCH = 20
# After the other service was away for long: that many batches in a row before the next pause.
MAX_BATCHES = 50


class Owing:
    """The columns of an outbox, for a model."""

    __tablename__ = "outbox"
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    payload: Mapped[str] = mapped_column(Text)
    due_us: Mapped[int] = mapped_column(BigInteger, index=True)
    attempts: Mapped[int] = mapped_column(Integer)


def create_outbox(op: Any) -> None:
    """In a migration: make the table."""
    op.create_table(
        "outbox",
        Column("key", String(64), primary_key=True),
        Column("payload", Text, nullable=False),
        Column("due_us", BigInteger, nullable=False),
        Column("attempts", Integer, nullable=False),
    )
    op.create_index("ix_outbox_due_us", "outbox", ["due_us"])


@dataclass(frozen=True, slots=True)
class Owed:
    """One note, and how often its delivery was begun."""

    key: str
    payload: dict[str, Any]
    attempts: int


# Sends it to the other service within so many seconds; returns the status, or raises CallError.
Deliver = Callable[[Owed, float], int]


class Outbox:
    """Delivers what a table holds. No transaction is open during a call. Safe for threads.

    What the other service refuses (4xx) is given up after `refusals`, if that is set; what cannot be asked now never is.
    """

    def __init__(
        self,
        db: Database,
        table: Any,
        deliver: Deliver,
        *,
        refusals: int | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._table = table
        self._deliver = deliver
        self._refusals = refusals
        self._clock = clock

    def owe(self, session: Session, key: str, payload: dict[str, Any]) -> None:
        """Note it, in the transaction of the session."""
        upsert(
            session,
            self._table,
            key=key,
            payload=json.dumps(payload),
            due_us=self._now_us() + int(FIRST_S * 1_000_000),
            attempts=0,
        )

    def find(self, session: Session, key: str) -> Owed | None:
        """What is owed under the key."""
        table = self._table
        row = session.execute(select(table.payload, table.attempts).where(table.key == key)).first()
        return Owed(key, json.loads(row.payload), row.attempts) if row is not None else None

    def at_once(self, key: str, deadline_s: float) -> None:
        """Try once, right after the commit. Never raises: what stays owed is the job's."""
        try:
            with self._db.session(read_only=True) as session:
                owed = self.find(session, key)
            if owed is not None:
                self._try(owed, min(AT_ONCE_S, deadline_s))
        except Exception as error:  # what brought it about is done: nothing that happens here may deny it
            log.warning("not delivered at once", key=key, error=type(error).__name__)

    def deliver(self) -> None:
        """Deliver what is due, as far as the other service can be asked. A job calls it about once a second."""
        for _ in range(MAX_BATCHES):
            if not self.deliver_batch():
                return

    def deliver_batch(self) -> bool:
        """Whether there may be more that can be delivered now."""
        due = self._due()
        for key, due_us, attempts in due:
            owed = self._claim(key, due_us, attempts + 1)
            if owed is not None and not self._try(owed, IN_BACKGROUND_S):
                return False
        return len(due) == BATCH

    def _due(self) -> list[tuple[str, int, int]]:
        table = self._table
        query = select(table.key, table.due_us, table.attempts).where(table.due_us <= self._now_us())
        with self._db.session(read_only=True) as session:
            rows = session.execute(query.order_by(table.due_us).limit(BATCH))
            return [(row.key, row.due_us, row.attempts) for row in rows]

    def _claim(self, key: str, due_us: int, attempts: int) -> Owed | None:
        """Take one for this instance; None if another was faster. If it is not delivered, it comes due again by itself."""
        table = self._table
        wait_s = IN_BACKGROUND_S + retry_s(attempts, self._clock.random())
        taken = update(table).where(table.key == key, table.due_us == due_us)
        taken = taken.values(due_us=self._now_us() + int(wait_s * 1_000_000), attempts=attempts)
        with self._db.session() as session:
            return self.find(session, key) if write(session, taken) else None

    def _try(self, owed: Owed, deadline_s: float) -> bool:
        """Deliver one, and forget it if that is over. False where the other service cannot be asked now."""
        try:
            status = self._deliver(owed, deadline_s)
        except CallError as error:
            log.info("not delivered", key=owed.key, error=type(error).__name__)
            return False
        if status >= 300:
            log.warning("delivery refused", key=owed.key, status=status, attempts=owed.attempts)
            # 401 and 403 are about this service's token, not about this note.
            if status >= 500 or status in (401, 403, 429):
                return False
            if self._refusals is None or owed.attempts < self._refusals:
                return True
            log.error("delivery given up", key=owed.key, attempts=owed.attempts)
        # A later note under the same key stays.
        delivered = delete(self._table).where(
            self._table.key == owed.key, self._table.payload == json.dumps(owed.payload)
        )
        with self._db.session() as session:
            write(session, delivered)
        return True

    def _now_us(self) -> int:
        return int(self._clock.time() * 1_000_000)


def retry_s(attempts: int, jitter: float) -> float:
    """Seconds from the end of the n-th failed delivery to the next: 1 s doubling up to the bound, full jitter above half of it."""
    return min(RETRY_MAX_S, 2.0 ** min(attempts - 1, 20)) * (0.5 + 0.5 * jitter)
