"""Events take the place of what posts sends and auth is sent; what of a profile others see."""

import sqlalchemy as sa
from alembic import op

from services.kit.db.outbox import create_outbox
from services.kit.events.tables import create_event_tables, drop_event_tables

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create_event_tables(op)
    op.drop_table("outbox")
    op.create_table(
        "authored",
        sa.Column("post_id", sa.String(64), primary_key=True),
        sa.Column("author_id", sa.String(64), nullable=False, index=True),
        sa.Column("gone_us", sa.BigInteger, nullable=True, index=True),
    )
    op.add_column("users", sa.Column("shown", sa.String(100), nullable=False, server_default=""))
    op.drop_column("users", "post_count_version")


def downgrade() -> None:
    op.add_column("users", sa.Column("post_count_version", sa.BigInteger, nullable=False, server_default="0"))
    op.drop_column("users", "shown")
    op.drop_table("authored")
    create_outbox(op)
    drop_event_tables(op)
