"""People, notifications, what people want, deliveries, mentions and events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.kit.db.portable import NUMBER
from services.kit.events.tables import create_event_tables, drop_event_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    _people()
    _notifications()
    _deliveries()
    _mentions()
    create_event_tables(op)


def _people() -> None:
    op.create_table(
        "people",
        sa.Column("user_id", sa.String(64), primary_key=True),
        sa.Column("email", sa.String(254)),
        sa.Column("first_name", sa.String(100), nullable=False),
        sa.Column("last_name", sa.String(100), nullable=False),
        sa.Column("phone", sa.String(20)),
        sa.Column("gone_us", sa.BigInteger),
    )
    op.create_table(
        "preferences",
        sa.Column("user_id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(10), primary_key=True),
        sa.Column("channel", sa.String(10), primary_key=True),
        sa.Column("wanted", sa.Boolean, nullable=False),
    )
    op.create_table(
        "silenced",
        sa.Column("user_id", sa.String(64), primary_key=True),
        sa.Column("what", sa.String(4), primary_key=True),
        sa.Column("other_id", sa.String(64), primary_key=True),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_silenced_other", "silenced", ["other_id"])
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("p256dh", sa.String(120), nullable=False),
        sa.Column("auth", sa.String(32), nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_subscriptions_user_id", "subscriptions", ["user_id"])


def _notifications() -> None:
    op.create_table(
        "notifications",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("about", sa.String(100), nullable=False),
        sa.Column("actor_id", sa.String(64)),
        sa.Column("post_id", sa.String(64)),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("listed", sa.Boolean, nullable=False),
        sa.Column("read_us", sa.BigInteger),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("user_id", "about", name="uq_notifications_user_about"),
        # Numbers of deleted ones are never used again: a cursor may still stand on one.
        sqlite_autoincrement=True,
    )
    op.create_index("ix_notifications_user", "notifications", ["user_id", "listed", "number"])
    op.create_index("ix_notifications_about", "notifications", ["about"])
    op.create_index("ix_notifications_post", "notifications", ["post_id"])
    op.create_index("ix_notifications_created", "notifications", ["created_us"])


def _mentions() -> None:
    op.create_table(
        "mentions",
        sa.Column("about", sa.String(100), primary_key=True),
        sa.Column("post_id", sa.String(64)),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("due_us", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("ix_mentions_post_id", "mentions", ["post_id"])
    op.create_index("ix_mentions_due_us", "mentions", ["due_us"])


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column(
            "notification_number",
            NUMBER,
            sa.ForeignKey("notifications.number", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("channel", sa.String(10), nullable=False),
        sa.Column("target", sa.String(32), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_us", sa.BigInteger),
        sa.Column("reason", sa.String(200)),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_deliveries_notification_number", "deliveries", ["notification_number"])
    op.create_index("ix_deliveries_user_id", "deliveries", ["user_id"])
    op.create_index("ix_deliveries_due", "deliveries", ["channel", "due_us"])
    op.create_index("ix_deliveries_state", "deliveries", ["state", "number"])


def downgrade() -> None:
    drop_event_tables(op)
    for name in (
        "mentions",
        "deliveries",
        "notifications",
        "subscriptions",
        "silenced",
        "preferences",
        "people",
    ):
        op.drop_table(name)
