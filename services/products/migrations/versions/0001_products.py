"""The catalogue and its search index."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.kit.db.fulltext import create_search, drop_search
from services.kit.db.portable import NUMBER

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "products",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("sku", sa.String(40), nullable=False, unique=True),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("category", sa.String(40), nullable=False),
        sa.Column("price", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        # Numbers of deleted products are never used again: a cursor may still stand on one.
        sqlite_autoincrement=True,
    )
    op.create_index("products_category", "products", ["category", "number"])
    op.create_index("products_price", "products", ["currency", "price", "number"])
    op.create_index("products_name", "products", ["name", "number"])
    create_search(op, "products", ["name", "description", "sku"])


def downgrade() -> None:
    drop_search(op, "products")
    op.drop_table("products")
