"""Deliveries on their way: what is due is claimed in the database, handed to its channel, and settled by what comes of it.

waiting ─▶ claimed ─▶ handed ─▶ sent │ unsure        `unsure`: the other side may have it, and nobody can know
   ▲          │          │
   └──────────┴──────────┘ refused for now            `failed`: refused for ever, or for too long

`due_us` is the claim: every step writes it anew, where it is still what the step before wrote. Of two instances, one that stood
still for longer than its claim lasted among them, only one takes a delivery from `claimed` to `handed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from discovery.clock import SYSTEM_CLOCK, Clock
from services.kit.db.portable import write
from services.kit.db.session import Database
from services.kit.text import iso
from services.notifications import store
from services.notifications.domain import Channel, Notification, Person, Subscription, retry_s
from services.notifications.tables import DeliveryRow, NotificationRow

log = structlog.get_logger(__name__)

WAITING, CLAIMED, HANDED = "waiting", "claimed", "handed"
SENT, UNSURE, FAILED = "sent", "unsure", "failed"
STATES = (WAITING, CLAIMED, HANDED, SENT, UNSURE, FAILED)

BATCH = 100
# After the other side was away for long: so many batches in a row before the next pause.
MAX_BATCHES = 20
GIVE_UP_US = 24 * 3600 * 1_000_000
MAX_REASON = 200


class Undelivered(Exception):
    """What keeps a delivery from being made. The text is the reason."""


class Later(Undelivered):
    """Not taken now: it may be later."""


class Away(Later):
    """The other side cannot be asked now: neither for this delivery, nor for the next ones."""


class Refused(Undelivered):
    """Not taken, and never will be."""


class InDoubt(Undelivered):
    """All of it was sent, and no answer came."""


class ClaimLost(Undelivered):
    """It took so long that another instance may have it by now."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What is to be delivered; `claim_us` is the claim on it."""

    number: int
    id: str
    claim_us: int
    attempts: int
    created_us: int
    notification: Notification
    person: Person
    subscription: Subscription | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery, for an operator. `message_id` is what a mail server's log calls it."""

    number: int
    id: str
    user_id: str
    channel: str
    state: str
    attempts: int
    reason: str | None
    message_id: str | None
    created_us: int

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "userId": self.user_id,
            "channel": self.channel,
            "state": self.state,
            "attempts": self.attempts,
            "reason": self.reason,
            "messageId": self.message_id,
            "createdAt": iso(self.created_us),
        }


class Carrier(Protocol):
    """A way to people."""

    channel: Channel

    def send(self, parcel: Parcel, hand_over: Callable[[], None]) -> None:
        """Deliver it; returns when the other side has it. Raises Undelivered.

        A way that cannot tell the other side what it has already calls `hand_over` at the last moment at which nothing has
        been delivered: from then on it is not sent again by itself. What `hand_over` raises must end the attempt.
        """
        ...


class Courier:
    """Delivers what is due by one channel. Several instances may do so at once; `deliver` is for a job."""

    def __init__(
        self,
        db: Database,
        carrier: Carrier,
        *,
        lease_s: float,
        outcomes: Counter | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._carrier = carrier
        self._lease_us = int(lease_s * 1e6)
        self._outcomes = outcomes
        self._clock = clock

    def deliver(self) -> None:
        """Deliver what is due, as far as the other side can be asked."""
        for _ in range(MAX_BATCHES):
            if not self._deliver_batch():
                return

    def _deliver_batch(self) -> bool:
        """Whether there may be more that can be delivered now."""
        due = self._due()
        for number, due_us, state in due:
            if state == HANDED:
                # Its instance ended between the last byte and the answer to it.
                self._settle(number, due_us, UNSURE, "no answer was seen")
                continue
            parcel = self._claim(number, due_us)
            if parcel is not None and not self._try(parcel):
                return False
        return len(due) == BATCH

    def _due(self) -> Sequence[tuple[int, int, str]]:
        row = DeliveryRow
        query = select(row.number, row.due_us, row.state).where(
            row.channel == self._carrier.channel, row.due_us <= self._now_us()
        )
        with self._db.session(read_only=True) as session:
            rows = session.execute(query.order_by(row.due_us, row.number).limit(BATCH))
            return [(one.number, one.due_us or 0, one.state) for one in rows]

    def _claim(self, number: int, due_us: int) -> Parcel | None:
        """Take it for this instance; None if another was faster, or if there is nobody and nothing to deliver it to."""
        row = DeliveryRow
        # Never the same twice: it tells this claim from every other.
        claim_us = max(self._now_us() + self._lease_us, due_us + 1)
        with self._db.session() as session:
            taken = update(row).where(row.number == number, row.due_us == due_us)
            values = {"state": CLAIMED, "due_us": claim_us, "attempts": row.attempts + 1}
            if not write(session, taken.values(**values)):
                return None
            parcel = _parcel(session, number)
            if parcel is None:
                ended = update(row).where(row.number == number)
                write(session, ended.values(state=FAILED, due_us=None, reason="no address any more"))
            return parcel

    def _try(self, parcel: Parcel) -> bool:
        """Deliver one, and settle it. False where the other side cannot be asked now."""
        handed: list[int] = []

        def hand_over() -> None:
            handed.append(self._hand_over(parcel))

        def settle(state: str, reason: str | None) -> None:
            self._settle(parcel.number, handed[0] if handed else parcel.claim_us, state, reason)

        try:
            self._carrier.send(parcel, hand_over)
        except Later as error:
            self._later(parcel, str(error), settle)
            return not isinstance(error, Away)
        except Refused as error:
            settle(FAILED, str(error))
        except InDoubt as error:
            settle(UNSURE, str(error))
        except ClaimLost:
            log.warning("delivery was another's by then", delivery=parcel.id)
        except Exception as error:
            log.error("delivery broke off", delivery=parcel.id, exc_info=error)
            if handed:
                settle(UNSURE, repr(error))
            else:
                self._later(parcel, repr(error), settle)
        else:
            settle(SENT, None)
        return True

    def _hand_over(self, parcel: Parcel) -> int:
        """Note that from now on nobody can know; returns the claim that this makes. Raises ClaimLost."""
        claim_us = max(self._now_us() + self._lease_us, parcel.claim_us + 1)
        row = DeliveryRow
        mine = update(row).where(row.number == parcel.number, row.due_us == parcel.claim_us)
        with self._db.session() as session:
            if not write(session, mine.values(state=HANDED, due_us=claim_us)):
                raise ClaimLost
        return claim_us

    def _later(self, parcel: Parcel, reason: str, settle: Callable[[str, str], None]) -> None:
        if self._now_us() - parcel.created_us > GIVE_UP_US:
            settle(FAILED, f"given up: {reason}")
        else:
            settle(WAITING, reason)

    def _settle(self, number: int, due_us: int, state: str, reason: str | None) -> None:
        values: dict[str, Any] = {"state": state, "due_us": None, "reason": reason and reason[:MAX_REASON]}
        with self._db.session() as session:
            if state == WAITING:
                tried = session.scalar(select(DeliveryRow.attempts).where(DeliveryRow.number == number)) or 1
                values["due_us"] = self._now_us() + int(retry_s(tried, self._clock.random()) * 1e6)
            mine = update(DeliveryRow).where(DeliveryRow.number == number, DeliveryRow.due_us == due_us)
            if not write(session, mine.values(**values)):
                return
        if self._outcomes is not None:
            self._outcomes.labels(self._carrier.channel, state).inc()
        if state != SENT:
            level = log.info if state == WAITING else log.warning
            level("not delivered", channel=self._carrier.channel, delivery=number, state=state, reason=reason)

    def _now_us(self) -> int:
        return int(self._clock.time() * 1e6)


def outcomes_in(registry: CollectorRegistry) -> Counter:
    return Counter(
        "service_deliveries",
        "Deliveries, by channel and what came of an attempt: sent, waiting (tried again), unsure, failed.",
        ("channel", "outcome"),
        registry=registry,
    )


def _parcel(session: Session, number: int) -> Parcel | None:
    row = session.get_one(DeliveryRow, number)
    notification = session.get_one(NotificationRow, row.notification_number).to_notification()
    person = store.find_person(session, row.user_id)
    subscription = store.find_subscription(session, row.target) if row.channel == "push" else None
    reached = {
        "email": person is not None and person.email,
        "sms": person is not None and person.phone,
        "push": subscription is not None and person is not None,
    }[row.channel]
    if person is None or not reached:
        return None
    return Parcel(
        number, row.id, row.due_us or 0, row.attempts, row.created_us, notification, person, subscription
    )


# -- for operators


def page(
    session: Session, *, state: str | None, before: int | None, limit: int, domain: str
) -> list[Delivery]:
    """Newest first: at most `limit` with a number under `before`."""
    query = select(DeliveryRow, NotificationRow.id).join(
        NotificationRow, NotificationRow.number == DeliveryRow.notification_number
    )
    if state is not None:
        query = query.where(DeliveryRow.state == state)
    if before is not None:
        query = query.where(DeliveryRow.number < before)
    rows = session.execute(query.order_by(DeliveryRow.number.desc()).limit(limit))
    return [_delivery(row, notification_id, domain) for row, notification_id in rows]


def send_again(session: Session, delivery_id: str, now_us: int, domain: str) -> Delivery | None:
    """Have one that is unsure or has failed come up once more, under the same Message-ID. None where there is no such one."""
    again = update(DeliveryRow).where(DeliveryRow.id == delivery_id, DeliveryRow.state.in_((UNSURE, FAILED)))
    if not write(session, again.values(state=WAITING, due_us=now_us, created_us=now_us)):
        return None
    row = session.scalars(select(DeliveryRow).where(DeliveryRow.id == delivery_id)).one()
    notification = session.get_one(NotificationRow, row.notification_number)
    return _delivery(row, notification.id, domain)


def _delivery(row: DeliveryRow, notification_id: str, domain: str) -> Delivery:
    message_id = f"<{notification_id}@{domain}>" if row.channel == "email" else None
    return Delivery(
        row.number,
        row.id,
        row.user_id,
        row.channel,
        row.state,
        row.attempts,
        row.reason,
        message_id,
        row.created_us,
    )
