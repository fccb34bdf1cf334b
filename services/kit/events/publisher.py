"""From a transaction to the broker: what is committed arrives at least once, and in the order of its subject.

The relay never passes over a row: one that commits late, with a smaller number than others that went out, is still unsent,
and goes out next. Rows of one subject are numbered in the order of their commits: PostgreSQL holds a lock of the subject
from its number to its commit, and SQLite has one writer.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import structlog
from prometheus_client import Gauge
from sqlalchemy import delete, event, func, insert, select, text, update
from sqlalchemy.orm import Session

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.loop import Loop
from services.kit.db.portable import insert_new, write
from services.kit.db.session import READ_ONLY, Database, background, open_session
from services.kit.events.event import MAX_BYTES, Event, subject_of, wrap
from services.kit.events.tables import Tables
from services.kit.events.transport import Transport
from services.kit.web.context import child_of, peek

log = structlog.get_logger(__name__)

# What is not woken by a commit of this process: another instance's that has died.
PAUSE_S = 1.0
LEASE_S = 5.0
BATCH = 200
KEPT_S = 24 * 3600.0
# Between two looks for rows and entries that are not needed any more.
TIDY_S = 30.0
PURGE_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits for the broker: how many events, and the age of the oldest (seconds)."""

    length: int
    age_s: float


class Publisher:
    """The events of one service. `publish` is safe for threads; `turn` is the relay's, on one thread of each instance."""

    def __init__(
        self,
        db: Database,
        tables: Tables,
        service: str,
        instance: str,
        transport: Transport,
        *,
        backlog: Gauge | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._rows = tables.published
        self._relay = tables.relay
        self._service = service
        self._instance = instance
        self._transport = transport
        self._clock = clock
        self._backlog = backlog
        self._tidy_at = 0.0
        self.loop = Loop("events-relay", self.turn, clock=clock)

    def publish(self, what: Event) -> None:
        """Note the event in the session that is open in this thread: it goes out if, and once, that commits.

        Raises RuntimeError outside of a session, ValueError for an event of another service or of more than `MAX_BYTES`.
        """
        session = open_session()
        if session is None or session.info.get(READ_ONLY):
            raise RuntimeError(
                "publish inside of `with kit().db.session()`: an event belongs to what brings it about"
            )
        if self._service != what.PRODUCER:
            raise ValueError(f"{what.TYPE} is an event of {what.PRODUCER}, not of {self._service}")
        caller = peek()
        now_us = self._now_us()
        body = wrap(what, now_us, child_of(caller.traceparent) if caller is not None else "").to_json()
        if len(body) > MAX_BYTES:
            raise ValueError(f"{what.TYPE} of {len(body)} bytes: at most {MAX_BYTES} go through a broker")
        subject = subject_of(what)
        if not self._db.is_sqlite:
            key = zlib.crc32(f"event:{subject}".encode())
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        session.execute(insert(self._rows).values(subject=subject, body=body, created_us=now_us))
        event.listen(session, "after_commit", self._hurry)  # also of a savepoint, hence not once

    def backlog(self) -> Backlog:
        """What waits. Raises SQLAlchemyError."""
        rows = self._rows.c
        query = select(func.count(), func.min(rows.created_us)).where(rows.sent_us.is_(None))
        with self._db.session(read_only=True) as session:
            length, oldest_us = session.execute(query).one()
        return Backlog(length, (self._now_us() - oldest_us) / 1e6 if length else 0.0)

    def turn(self) -> float:
        """Hand over what waits, if this instance is the one to do it. Raises Away, SQLAlchemyError: nothing is lost by them."""
        with background():
            if self._backlog is not None:
                backlog = self.backlog()
                self._backlog.labels("length").set(backlog.length)
                self._backlog.labels("age_seconds").set(backlog.age_s)
            while not self.loop.stopped:
                rows = self._waiting()
                if not rows or not self._hold():
                    break
                self._transport.publish(self._service, [body for _, body in rows])
                self._mark([number for number, _ in rows])
                if len(rows) < BATCH:
                    break
            if self._clock.monotonic() >= self._tidy_at and self._hold():
                self._tidy_at = self._clock.monotonic() + TIDY_S * (0.5 + self._clock.random())
                self._tidy()
        return PAUSE_S

    def _hurry(self, _: Session) -> None:
        self.loop.hurry()

    def _waiting(self) -> list[tuple[int, str]]:
        rows = self._rows.c
        query = select(rows.number, rows.body).where(rows.sent_us.is_(None)).order_by(rows.number)
        with self._db.session(read_only=True) as session:
            return [(row.number, row.body) for row in session.execute(query.limit(BATCH))]

    def _hold(self) -> bool:
        """Take the relay's lease, or keep it up. A holder that stood still past its end may send what another has sent
        meanwhile: those events are known to all that have consumed them."""
        lease, now_us = self._relay.c, self._now_us()
        until_us = now_us + int(LEASE_S * 1e6)
        mine = update(self._relay).where((lease.holder == self._instance) | (lease.until_us < now_us))
        with self._db.session() as session:
            if write(session, mine.values(holder=self._instance, until_us=until_us)):
                return True
            return insert_new(session, self._relay, number=1, holder=self._instance, until_us=until_us)

    def _mark(self, numbers: list[int]) -> None:
        sent = update(self._rows).where(self._rows.c.number.in_(numbers)).values(sent_us=self._now_us())
        with self._db.session() as session:
            write(session, sent)

    def _tidy(self) -> None:
        rows, before_us = self._rows.c, self._now_us() - int(KEPT_S * 1e6)
        old = select(rows.number).where(rows.sent_us < before_us).limit(PURGE_BATCH)
        with self._db.session() as session:
            write(session, delete(self._rows).where(rows.number.in_(old)))
        self._transport.tidy(self._service)

    def _now_us(self) -> int:
        return int(self._clock.time() * 1e6)
