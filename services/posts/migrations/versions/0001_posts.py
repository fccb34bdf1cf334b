"""Posts, tags, comments, their search index, idempotency keys and the counts owed to users."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.kit.db.fulltext import create_search, drop_search
from services.kit.db.portable import NUMBER

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "posts",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("author_id", sa.String(64), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        # Numbers of deleted posts are never used again: a cursor may still stand on one.
        sqlite_autoincrement=True,
    )
    op.create_index("posts_author", "posts", ["author_id", "number"])
    op.create_table(
        "post_tags",
        sa.Column("post_number", NUMBER, sa.ForeignKey("posts.number", ondelete="CASCADE"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("tag", sa.String(40), nullable=False),
    )
    op.create_index("post_tags_tag", "post_tags", ["tag", "post_number"], unique=True)
    op.create_table(
        "comments",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(32), nullable=False, unique=True),
        sa.Column("post_number", NUMBER, sa.ForeignKey("posts.number", ondelete="CASCADE"), nullable=False),
        sa.Column("author_id", sa.String(64), nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("comments_post", "comments", ["post_number", "number"])
    op.create_table(
        "idempotency_keys",
        sa.Column("subject", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(128), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("answer", sa.Text, nullable=True),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    op.create_index("idempotency_keys_created", "idempotency_keys", ["created_us"])
    op.create_table(
        "author_counts",
        sa.Column("author_id", sa.String(64), primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("due_us", sa.BigInteger, nullable=True),
        sa.Column("attempts", sa.Integer, nullable=False),
    )
    op.create_index("author_counts_due", "author_counts", ["due_us"])
    create_search(op, "posts", ["title", "content"])


def downgrade() -> None:
    drop_search(op, "posts")
    for name in ("author_counts", "idempotency_keys", "comments", "post_tags", "posts"):
        op.drop_table(name)
