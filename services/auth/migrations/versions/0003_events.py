"""Events: accounts that were opened, and removals to hear of."""

from alembic import op

from services.kit.events.tables import create_event_tables, drop_event_tables

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create_event_tables(op)


def downgrade() -> None:
    drop_event_tables(op)
