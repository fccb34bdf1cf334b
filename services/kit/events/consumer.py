"""From the broker to a service's functions: each event has its effect once, those of one subject in order.

The effect and the event's id are written in one transaction, so that a second delivery has none. What a function refuses is
parked in the service's own database, with what follows of the same subject, and tried again while the others go on; after the
last try it goes to the dead letters, and its id is forgotten: what is replayed from there is new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog
from pydantic import ValidationError
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.loop import Loop
from services.kit.db.portable import write
from services.kit.db.session import Database, background, passes
from services.kit.events.event import Envelope, Event, read
from services.kit.events.tables import Tables
from services.kit.events.transport import Delivery, Transport
from services.kit.web.context import Caller, child_of, set_current

log = structlog.get_logger(__name__)

Handler = Callable[[Any, Session], object]

TRIES = 5
# The pause after the n-th failure is chance times this, doubled each time: full jitter, at most a minute for all tries.
RETRY_FIRST_S = 4.0
PARKED_PAUSE_S = 0.5
BATCH = 100
WAIT_S = 1.0
# Longer than a broker can be away and still know what it delivered.
REMEMBERED_S = 7 * 24 * 3600.0
PURGE_BATCH = 1000
MAX_REASON = 500


class Consumer:
    """The events that one service wants to hear of. Its loops run in the worker; `consumes` comes before them."""

    def __init__(
        self,
        db: Database,
        tables: Tables,
        service: str,
        transport: Transport,
        *,
        clock: Clock = SYSTEM_CLOCK,
        retry_first_s: float = RETRY_FIRST_S,
    ) -> None:
        self._db = db
        self._consumed = tables.consumed
        self._parked = tables.parked
        self._service = service
        self._transport = transport
        self._clock = clock
        self._retry_first_s = retry_first_s
        self._handlers: dict[str, tuple[type[Event], Handler]] = {}
        self._unsure = False
        self.loops = (
            Loop("events", self.turn, clock=clock),
            Loop("events-parked", self.turn_parked, clock=clock),
        )

    def consumes(self, kind: type[Event]) -> Callable[[Handler], Handler]:
        """Have a function called with each event of a type, and the session of a transaction that is committed after it."""

        def register(handler: Handler) -> Handler:
            if kind.TYPE in self._handlers:
                raise ValueError(f"{kind.TYPE} is consumed twice by {self._service}")
            self._handlers[kind.TYPE] = (kind, handler)
            return handler

        return register

    @property
    def kinds(self) -> list[type[Event]]:
        """The types of events that are consumed."""
        return [kind for kind, _ in self._handlers.values()]

    @property
    def wanted(self) -> dict[str, list[str]]:
        """The services whose events are consumed, and the types of these."""
        found: dict[str, list[str]] = {}
        for kind in self.kinds:
            found.setdefault(kind.PRODUCER, []).append(kind.TYPE)
        return found

    def turn(self) -> float:
        """Receive, take effect, acknowledge. Raises Away, SQLAlchemyError: what is not acknowledged comes again."""
        if self._unsure:
            self._transport.again()
        # Until all is acknowledged: what the broker gave may be lost on its way here.
        self._unsure = True
        deliveries = self._transport.receive(self._service, self.wanted, BATCH, WAIT_S)
        if deliveries:
            wanted = [(each, envelope) for each in deliveries if (envelope := self._understand(each))]
            with background(), self._db.session() as session:
                self._take(session, wanted)
            self._transport.forget_dead(self._service, [each.replays for each, _ in wanted if each.replays])
            self._transport.acknowledge(self._service, deliveries)
        self._unsure = False
        return 0.0

    def turn_parked(self) -> float:
        """Try again what is due. Raises Away, SQLAlchemyError."""
        with background():
            for number in self._due():
                self._try_again(number)
        return PARKED_PAUSE_S

    def stop(self, within_s: float) -> None:
        """Begin nothing more, wait for what is under way, and leave the rest to other instances."""
        for loop in self.loops:
            loop.stop()
        for loop in self.loops:
            loop.join(within_s)
        self._transport.release(self._service)

    def purge(self) -> None:
        """Forget ids that no broker delivers again. For a job."""
        ids, before_us = self._consumed.c, self._now_us() - int(REMEMBERED_S * 1e6)
        old = select(ids.id).where(ids.at_us < before_us).limit(PURGE_BATCH)
        with self._db.session() as session:
            write(session, delete(self._consumed).where(ids.id.in_(old)))

    # -- new ones

    def _understand(self, delivery: Delivery) -> Envelope | None:
        """What is in it, where a function takes it. What is not for this service and was dead before, stays dead."""
        try:
            envelope = read(delivery.body)
        except ValueError as error:
            if not delivery.replays:
                # Nothing says whose turn it is: it would fail the same each time.
                self._bury(delivery.body, f"not understood: {error}")
            return None
        return envelope if self._is_wanted(envelope, delivery) else None

    def _take(self, session: Session, wanted: Sequence[tuple[Delivery, Envelope]]) -> None:
        waiting = self._waiting_subjects(session)
        for envelope, body in self._new(session, wanted):
            key = _subject(envelope)
            if key in waiting:
                self._park(session, envelope, body, attempts=0)
                continue
            reason = self._handle(session, envelope)
            if reason:
                log.warning("event failed", type=envelope.type, id=envelope.id, tries=1, reason=reason)
                waiting.add(key)
                self._park(session, envelope, body, attempts=1)

    def _new(
        self, session: Session, wanted: Sequence[tuple[Delivery, Envelope]]
    ) -> list[tuple[Envelope, bytes]]:
        """What was not there before, noted as consumed."""
        found: dict[str, tuple[Envelope, bytes]] = {}
        for delivery, envelope in wanted:
            found.setdefault(envelope.id, (envelope, delivery.body))
        ids = self._consumed.c.id
        for known in session.scalars(select(ids).where(ids.in_(found))) if found else ():
            del found[known]
        if found:
            # Where another instance has just done the same, this transaction fails, and what is delivered again is known.
            rows = [{"id": id_, "at_us": self._now_us()} for id_ in found]
            session.execute(insert(self._consumed), rows)
        return list(found.values())

    def _is_wanted(self, envelope: Envelope, delivery: Delivery) -> bool:
        """Whether a function takes it. Only a type's own service may say that it happened."""
        kind, _ = self._handlers.get(envelope.type, (None, None))
        # What comes back from the dead letters was looked at when it came first.
        by = envelope.producer if delivery.replays else delivery.producer
        if kind is None or kind.PRODUCER == envelope.producer == by:
            return kind is not None
        log.error("event of another service's type", type=envelope.type, source=envelope.producer, by=by)
        return False

    def _waiting_subjects(self, session: Session) -> set[str]:
        return set(session.scalars(select(self._parked.c.subject).distinct()))

    def _handle(self, session: Session, envelope: Envelope) -> str:
        """Let the function have the event; why it failed, or nothing. What it wrote is undone then.

        Raises what the database may have been for a moment: that is no fault of the event.
        """
        kind, handler = self._handlers[envelope.type]
        set_current(Caller(request_id=envelope.id, traceparent=child_of(envelope.traceparent)))
        try:
            with session.begin_nested():
                handler(kind.model_validate(envelope.data), session)
        except DBAPIError as error:
            if passes(error):
                raise
            return _reason(error)
        except PoolTimeout:
            raise
        except Exception as error:
            return _reason(error)
        finally:
            set_current(None)
        return ""

    # -- parked ones

    def _park(self, session: Session, envelope: Envelope, body: bytes, *, attempts: int) -> None:
        row = insert(self._parked).values(
            subject=_subject(envelope),
            body=body.decode(),
            attempts=attempts,
            due_us=self._now_us() + self._pause_us(attempts),
        )
        session.execute(row)

    def _pause_us(self, attempts: int) -> int:
        if not attempts:
            return 0
        return int(self._clock.random() * self._retry_first_s * 2.0 ** (attempts - 1) * 1e6)

    def _due(self) -> list[int]:
        """The numbers of those that are first of their subject, and due."""
        rows = self._parked.c
        first = select(func.min(rows.number)).group_by(rows.subject)
        query = select(rows.number).where(rows.number.in_(first), rows.due_us <= self._now_us())
        with self._db.session(read_only=True) as session:
            return list(session.scalars(query.order_by(rows.number).limit(BATCH)))

    def _try_again(self, number: int) -> None:
        rows = self._parked.c
        mine = rows.number == number
        with self._db.session() as session:
            # Another instance may be at it.
            held = select(rows.body, rows.attempts).where(mine, rows.due_us <= self._now_us())
            row = session.execute(held.with_for_update(skip_locked=True)).first()
            if row is None:
                return
            envelope = read(row.body)
            known = envelope.type in self._handlers
            reason = (
                self._handle(session, envelope) if known else "no function of this service takes it any more"
            )
            tries = row.attempts + 1
            if reason and tries < TRIES and known:
                log.warning("event failed", type=envelope.type, id=envelope.id, tries=tries, reason=reason)
                values = {"attempts": tries, "due_us": self._now_us() + self._pause_us(tries)}
                write(session, update(self._parked).where(mine).values(**values))
                return
            if reason:
                self._bury(row.body.encode(), reason)
                # It had no effect: when it is replayed, it is new.
                write(session, delete(self._consumed).where(self._consumed.c.id == envelope.id))
            write(session, delete(self._parked).where(mine))

    def _bury(self, body: bytes, reason: str) -> None:
        log.error("event given up", reason=reason)
        self._transport.bury(self._service, body, reason)

    def _now_us(self) -> int:
        return int(self._clock.time() * 1e6)


def _subject(envelope: Envelope) -> str:
    return f"{envelope.producer}:{envelope.subject}"


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:MAX_REASON]
    return f"{type(error).__name__}: {error}"[:MAX_REASON]
