"""The tables of notifications."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.kit.db.portable import NUMBER
from services.notifications.domain import Notification, Person, Subscription


class Base(DeclarativeBase):
    pass


class MentionRow(Base):
    """A text that names people whose ids users is still to be asked for. See `mentions`."""

    __tablename__ = "mentions"
    about: Mapped[str] = mapped_column(String(100), primary_key=True)
    post_id: Mapped[str | None] = mapped_column(String(64), index=True)
    text: Mapped[str] = mapped_column(Text)
    due_us: Mapped[int] = mapped_column(BigInteger, index=True)
    attempts: Mapped[int] = mapped_column(Integer)


class PersonRow(Base):
    """Somebody who was heard of. `gone_us` is set for a deleted account: the row stays, so that nothing comes late for it."""

    __tablename__ = "people"
    user_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    email: Mapped[str | None] = mapped_column(String(254))
    first_name: Mapped[str] = mapped_column(String(100))
    last_name: Mapped[str] = mapped_column(String(100))
    phone: Mapped[str | None] = mapped_column(String(20))
    gone_us: Mapped[int | None] = mapped_column(BigInteger)

    def to_person(self) -> Person:
        return Person(self.user_id, self.email, self.first_name, self.last_name, self.phone)


class NotificationRow(Base):
    """`listed` is false where the person wants it by other channels only."""

    __tablename__ = "notifications"
    number: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    user_id: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(10))
    about: Mapped[str] = mapped_column(String(100))
    actor_id: Mapped[str | None] = mapped_column(String(64))
    post_id: Mapped[str | None] = mapped_column(String(64))
    title: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    listed: Mapped[bool] = mapped_column(Boolean)
    read_us: Mapped[int | None] = mapped_column(BigInteger)
    created_us: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        UniqueConstraint("user_id", "about", name="uq_notifications_user_about"),
        Index("ix_notifications_user", "user_id", "listed", "number"),
        Index("ix_notifications_about", "about"),
        Index("ix_notifications_post", "post_id"),
        Index("ix_notifications_created", "created_us"),
        {"sqlite_autoincrement": True},
    )

    def to_notification(self) -> Notification:
        return Notification(
            self.number, self.id, self.user_id, self.kind, self.title, self.body,  # type: ignore[arg-type]
            self.actor_id, self.post_id, self.read_us, self.created_us,
        )  # fmt: skip


class PreferenceRow(Base):
    """Where a person wants it other than by default."""

    __tablename__ = "preferences"
    user_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(10), primary_key=True)
    channel: Mapped[str] = mapped_column(String(10), primary_key=True)
    wanted: Mapped[bool] = mapped_column(Boolean)


class SilencedRow(Base):
    """A blocked person (`what` is `user`) or a muted post (`post`)."""

    __tablename__ = "silenced"
    user_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    what: Mapped[str] = mapped_column(String(4), primary_key=True)
    other_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_us: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_silenced_other", "other_id"),)


class SubscriptionRow(Base):
    """A browser that takes pushes. `digest` is SHA-256 of the endpoint, which is too long for an index."""

    __tablename__ = "subscriptions"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[str] = mapped_column(String(64), index=True)
    endpoint: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    p256dh: Mapped[str] = mapped_column(String(120))
    auth: Mapped[str] = mapped_column(String(32))
    created_us: Mapped[int] = mapped_column(BigInteger)

    def to_subscription(self) -> Subscription:
        return Subscription(self.id, self.endpoint, self.p256dh, self.auth, self.created_us)


class DeliveryRow(Base):
    """One notification on its way by one channel; `target` is the subscription of a push. See `delivery.courier`.

    `due_us` is when it comes up next, and null when nothing more is done; it changes with every step, and whoever
    changes it has the delivery.
    """

    __tablename__ = "deliveries"
    number: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    notification_number: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("notifications.number", ondelete="CASCADE"), index=True
    )
    user_id: Mapped[str] = mapped_column(String(64), index=True)
    channel: Mapped[str] = mapped_column(String(10))
    target: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(10))
    attempts: Mapped[int] = mapped_column(Integer)
    due_us: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str | None] = mapped_column(String(200))
    created_us: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        Index("ix_deliveries_due", "channel", "due_us"),
        Index("ix_deliveries_state", "state", "number"),
        {"sqlite_autoincrement": True},
    )
