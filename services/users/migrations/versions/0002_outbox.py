"""Removals that auth has still to hear of move into the outbox."""

import sqlalchemy as sa
from alembic import op

from services.kit.db.outbox import create_outbox

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    create_outbox(op)
    op.execute(
        "INSERT INTO outbox (key, payload, due_us, attempts) "
        "SELECT user_id, '{}', CAST(next_at * 1000000 AS BIGINT), attempts FROM removals"
    )
    op.drop_table("removals")


def downgrade() -> None:
    op.create_table(
        "removals",
        sa.Column("user_id", sa.String(32), primary_key=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", sa.Float, nullable=False),
    )
    op.create_index("ix_removals_next_at", "removals", ["next_at"])
    op.execute(
        "INSERT INTO removals (user_id, attempts, next_at) SELECT key, attempts, due_us / 1000000.0 FROM outbox"
    )
    op.drop_table("outbox")
