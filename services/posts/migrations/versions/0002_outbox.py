"""Counts that users has still to hear of move into the outbox."""

import sqlalchemy as sa
from alembic import op

from services.kit.db.outbox import create_outbox

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    create_outbox(op)
    op.execute(
        """INSERT INTO outbox (key, payload, due_us, attempts)
        SELECT author_id, '{"count": ' || count || ', "version": ' || version || '}', due_us, attempts
        FROM author_counts WHERE due_us IS NOT NULL"""
    )
    op.drop_index("author_counts_due", "author_counts")
    op.drop_column("author_counts", "due_us")
    op.drop_column("author_counts", "attempts")


def downgrade() -> None:
    op.add_column("author_counts", sa.Column("due_us", sa.BigInteger, nullable=True))
    op.add_column("author_counts", sa.Column("attempts", sa.Integer, nullable=False, server_default="0"))
    op.create_index("author_counts_due", "author_counts", ["due_us"])
    op.execute(
        "UPDATE author_counts SET due_us = (SELECT due_us FROM outbox WHERE outbox.key = author_counts.author_id)"
    )
    op.drop_table("outbox")
