"""People, their notifications and what they want, in the database. Every function works inside the session of its caller."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping
from typing import Literal

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from services.kit.db.portable import insert_new, upsert, write
from services.notifications.domain import (
    CHANNELS,
    KINDS,
    ON_BY_DEFAULT,
    Channel,
    Kind,
    New,
    Notification,
    Person,
    Silenced,
    Subscription,
)
from services.notifications.tables import (
    DeliveryRow,
    MentionRow,
    NotificationRow,
    PersonRow,
    PreferenceRow,
    SilencedRow,
    SubscriptionRow,
)

MAX_SILENCED = 500
MAX_SUBSCRIPTIONS = 20
KEPT_US = 90 * 24 * 3600 * 1_000_000
PURGE_BATCH = 500
Switches = dict[Kind, dict[Channel, bool]]
What = Literal["user", "post"]


class TooMany(Exception):
    """There are as many of these as one person may have."""


# -- people


def _hold_person(session: Session, user_id: str) -> PersonRow | None:
    """The person, who is not deleted until this transaction ends; None if that has happened already.

    Somebody of whom nothing was heard yet is noted: events of different services come in any sequence.
    """
    insert_new(session, PersonRow, user_id=user_id, first_name="", last_name="")
    query = select(PersonRow).where(PersonRow.user_id == user_id).with_for_update(read=True)
    row = session.scalars(query.execution_options(populate_existing=True)).one()
    return row if row.gone_us is None else None


def add_person(session: Session, user_id: str, email: str, first_name: str, last_name: str) -> bool:
    """Note how a person is reached. False for an account that is deleted already."""
    row = _hold_person(session, user_id)
    if row is None:
        return False
    row.email, row.first_name, row.last_name = email, first_name, last_name
    session.flush()
    return True


def find_person(session: Session, user_id: str) -> Person | None:
    row = session.get(PersonRow, user_id)
    return row.to_person() if row is not None and row.gone_us is None else None


def remove_person(session: Session, user_id: str, now_us: int) -> None:
    """Delete all that is kept of and for the person, but that the account is gone."""
    upsert(
        session,
        PersonRow,
        user_id=user_id,
        email=None,
        first_name="",
        last_name="",
        phone=None,
        gone_us=now_us,
    )
    for table in (DeliveryRow, NotificationRow, PreferenceRow, SilencedRow, SubscriptionRow):
        write(session, delete(table).where(table.user_id == user_id))
    write(session, delete(SilencedRow).where(SilencedRow.other_id == user_id, SilencedRow.what == "user"))


# -- what is told


def notify(session: Session, new: New, available: Collection[str], now_us: int) -> bool:
    """Tell a person something, by those of the `available` channels that the person wants. False where nothing is told:
    it is told already, is the person's own doing, silenced, or the account is gone."""
    if new.user_id == new.actor_id:
        return False
    person = _hold_person(session, new.user_id)
    if person is None or _is_silenced(session, new):
        return False
    wanted = {channel for channel, on in preferences(session, new.user_id)[new.kind].items() if on}
    told = insert_new(
        session, NotificationRow, id=uuid.uuid4().hex, user_id=new.user_id, kind=new.kind, about=new.about,
        actor_id=new.actor_id, post_id=new.post_id, title=new.title, body=new.body, listed="app" in wanted,
        created_us=now_us,
    )  # fmt: skip
    if told:
        _send_later(session, new, person, wanted.intersection(available), now_us)
    return told


def _is_silenced(session: Session, new: New) -> bool:
    rows = select(SilencedRow.what, SilencedRow.other_id).where(
        SilencedRow.user_id == new.user_id, SilencedRow.other_id.in_([new.actor_id or "", new.post_id or ""])
    )
    return any(
        (row.what, row.other_id) in {("user", new.actor_id), ("post", new.post_id)}
        for row in session.execute(rows)
    )


def _send_later(
    session: Session, new: New, person: PersonRow, channels: Collection[str], now_us: int
) -> None:
    """Note a delivery for each way to the person."""
    targets: list[tuple[str, str]] = []
    if "email" in channels and person.email:
        targets.append(("email", ""))
    if "sms" in channels and person.phone:
        targets.append(("sms", ""))
    if "push" in channels:
        targets += [("push", one.id) for one in subscriptions(session, new.user_id)]
    number = session.scalar(
        select(NotificationRow.number).where(
            NotificationRow.user_id == new.user_id, NotificationRow.about == new.about
        )
    )
    session.add_all(
        DeliveryRow(
            id=uuid.uuid4().hex, notification_number=number, user_id=new.user_id, channel=channel, target=target,
            state="waiting", attempts=0, due_us=now_us, created_us=now_us,
        )
        for channel, target in targets
    )  # fmt: skip
    session.flush()


def forget_comment(session: Session, comment_id: str) -> None:
    """Take back what was told, and is still to be told, of a comment."""
    # First, for it waits for the one that is just finding those whom the comment names.
    write(session, delete(MentionRow).where(MentionRow.about == f"comment:{comment_id}"))
    write(session, delete(NotificationRow).where(NotificationRow.about == f"comment:{comment_id}"))


def forget_post(session: Session, post_id: str) -> None:
    """The same of a post, and of its comments."""
    write(session, delete(MentionRow).where(MentionRow.post_id == post_id))
    write(session, delete(NotificationRow).where(NotificationRow.post_id == post_id))
    write(session, delete(SilencedRow).where(SilencedRow.what == "post", SilencedRow.other_id == post_id))


def forget_old(session: Session, now_us: int) -> int:
    """Delete some of those older than 90 days; how many."""
    old = (
        select(NotificationRow.number).where(NotificationRow.created_us < now_us - KEPT_US).limit(PURGE_BATCH)
    )
    return write(session, delete(NotificationRow).where(NotificationRow.number.in_(old)))


# -- the list


def at_one_moment(session: Session) -> None:
    """All that this transaction reads, it reads as of one moment. Before its first statement."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))


def page(
    session: Session, user_id: str, *, unread: bool | None, before: int | None, limit: int
) -> list[Notification]:
    """Newest first: at most `limit` with a number under `before`; only the unread ones, or only the others, or all."""
    query = select(NotificationRow).where(NotificationRow.user_id == user_id, NotificationRow.listed)
    if unread is not None:
        query = query.where(
            NotificationRow.read_us.is_(None) if unread else NotificationRow.read_us.is_not(None)
        )
    if before is not None:
        query = query.where(NotificationRow.number < before)
    rows = session.scalars(query.order_by(NotificationRow.number.desc()).limit(limit))
    return [row.to_notification() for row in rows]


def count_unread(session: Session, user_id: str) -> int:
    unread = (NotificationRow.user_id == user_id, NotificationRow.listed, NotificationRow.read_us.is_(None))
    return session.scalar(select(func.count()).select_from(NotificationRow).where(*unread)) or 0


def mark(session: Session, user_id: str, notification_id: str, read_us: int | None) -> Notification | None:
    """Make it read, at that time, or unread. One that is read keeps its time. None where the person has no such one."""
    mine = (NotificationRow.id == notification_id, NotificationRow.user_id == user_id, NotificationRow.listed)
    changed = update(NotificationRow).where(*mine)
    if read_us is not None:
        changed = changed.where(NotificationRow.read_us.is_(None))
    write(session, changed.values(read_us=read_us))
    row = session.scalar(select(NotificationRow).where(*mine))
    return row.to_notification() if row is not None else None


def mark_all(session: Session, user_id: str, read_us: int) -> None:
    unread = (NotificationRow.user_id == user_id, NotificationRow.listed, NotificationRow.read_us.is_(None))
    write(session, update(NotificationRow).where(*unread).values(read_us=read_us))


# -- what people want


def preferences(session: Session, user_id: str) -> Switches:
    """Every kind and channel, and whether it is on."""
    found: Switches = {kind: {channel: channel in ON_BY_DEFAULT for channel in CHANNELS} for kind in KINDS}
    for row in session.scalars(select(PreferenceRow).where(PreferenceRow.user_id == user_id)):
        found[row.kind][row.channel] = row.wanted  # type: ignore[index]
    return found


def prefer(session: Session, user_id: str, changes: Mapping[Kind, Mapping[str, bool]]) -> None:
    for kind, channels in changes.items():
        for channel, wanted in channels.items():
            upsert(session, PreferenceRow, user_id=user_id, kind=kind, channel=channel, wanted=wanted)


def set_phone(session: Session, user_id: str, phone: str | None) -> None:
    """The number for text messages, or none any more."""
    row = _hold_person(session, user_id)
    if row is not None:
        row.phone = phone
        session.flush()


def silence(session: Session, user_id: str, what: What, other_id: str, now_us: int) -> None:
    """Hear nothing more of a person or a post. Raises TooMany."""
    if _hold_person(session, user_id) is None:
        return
    if len(silenced(session, user_id, what)) >= MAX_SILENCED:
        raise TooMany
    insert_new(session, SilencedRow, user_id=user_id, what=what, other_id=other_id, created_us=now_us)


def hear_again(session: Session, user_id: str, what: What, other_id: str) -> None:
    mine = (SilencedRow.user_id == user_id, SilencedRow.what == what, SilencedRow.other_id == other_id)
    write(session, delete(SilencedRow).where(*mine))


def silenced(session: Session, user_id: str, what: What) -> list[Silenced]:
    """The newest first."""
    query = select(SilencedRow).where(SilencedRow.user_id == user_id, SilencedRow.what == what)
    rows = session.scalars(query.order_by(SilencedRow.created_us.desc(), SilencedRow.other_id))
    return [Silenced(row.other_id, row.created_us) for row in rows]


def subscribe(
    session: Session, user_id: str, endpoint: str, p256dh: str, auth: str, now_us: int
) -> Subscription | None:
    """Have pushes sent to a browser, which is one person's at a time. None for an account that is gone. Raises TooMany."""
    if _hold_person(session, user_id) is None:
        return None
    digest = hashlib.sha256(endpoint.encode()).hexdigest()
    write(session, delete(SubscriptionRow).where(SubscriptionRow.digest == digest))
    if len(subscriptions(session, user_id)) >= MAX_SUBSCRIPTIONS:
        raise TooMany
    row = SubscriptionRow(
        id=uuid.uuid4().hex, user_id=user_id, endpoint=endpoint, digest=digest, p256dh=p256dh, auth=auth,
        created_us=now_us,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row.to_subscription()


def subscriptions(session: Session, user_id: str) -> list[Subscription]:
    query = select(SubscriptionRow).where(SubscriptionRow.user_id == user_id)
    rows = session.scalars(query.order_by(SubscriptionRow.created_us, SubscriptionRow.id))
    return [row.to_subscription() for row in rows]


def find_subscription(session: Session, subscription_id: str) -> Subscription | None:
    row = session.get(SubscriptionRow, subscription_id)
    return row.to_subscription() if row is not None else None


def unsubscribe(session: Session, subscription_id: str, user_id: str | None = None) -> bool:
    """Whether there was such a subscription (of that person)."""
    mine = delete(SubscriptionRow).where(SubscriptionRow.id == subscription_id)
    if user_id is not None:
        mine = mine.where(SubscriptionRow.user_id == user_id)
    return write(session, mine) > 0
