"""Counts, totals, and the kit's tables of events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.kit.events.tables import create_event_tables, drop_event_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_event_tables(op)
    op.create_table(
        "things",
        sa.Column("what", sa.String(8), primary_key=True),
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("born_us", sa.BigInteger, nullable=False),
        sa.Column("author", sa.String(128), nullable=False),
        sa.Column("tags", sa.Text, nullable=False),
        sa.Column("comments", sa.BigInteger, nullable=False),
        sa.Column("gone", sa.Boolean, nullable=False),
    )
    op.create_table(
        "tallies",
        sa.Column("sort", sa.String(8), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_index("tallies_value", "tallies", ["sort", "value", "name"])
    op.create_table(
        "counts",
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("step", sa.String(8), primary_key=True),
        sa.Column("start_s", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("count", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "hearings",
        sa.Column("kind", sa.String(32), primary_key=True),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("count", "displaced", "last_us", "heard_us", "delay_us")
        ),
    )


def downgrade() -> None:
    for name in ("hearings", "counts", "tallies", "things"):
        op.drop_table(name)
    drop_event_tables(op)
