"""Events take the place of counts that are sent to users; drafts, likes, and answers to comments."""

import sqlalchemy as sa
from alembic import op

from services.kit.db.outbox import create_outbox
from services.kit.db.portable import NUMBER
from services.kit.events.tables import create_event_tables, drop_event_tables

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create_event_tables(op)
    op.drop_table("outbox")
    op.drop_table("author_counts")
    op.add_column("posts", sa.Column("published_us", sa.BigInteger, nullable=True))
    op.execute("UPDATE posts SET published_us = created_us")
    op.create_index("posts_published", "posts", ["published_us", "number"])
    with op.batch_alter_table("comments", table_kwargs={"sqlite_autoincrement": True}) as comments:
        comments.add_column(sa.Column("parent_id", sa.String(32), nullable=True))
        comments.create_foreign_key("comments_parent", "comments", ["parent_id"], ["id"], ondelete="CASCADE")
    op.create_index("ix_comments_parent_id", "comments", ["parent_id"])
    op.create_table(
        "likes",
        sa.Column("post_number", NUMBER, sa.ForeignKey("posts.number", ondelete="CASCADE"), primary_key=True),
        sa.Column("subject", sa.String(64), primary_key=True),
    )
    op.create_index("likes_subject", "likes", ["subject"])
    op.create_index("comments_author", "comments", ["author_id"])
    op.create_table(
        "gone_authors",
        sa.Column("author_id", sa.String(64), primary_key=True),
        sa.Column("since_us", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("gone_authors")
    op.drop_index("comments_author", "comments")
    op.drop_table("likes")
    op.drop_index("ix_comments_parent_id", "comments")
    with op.batch_alter_table("comments", table_kwargs={"sqlite_autoincrement": True}) as comments:
        comments.drop_constraint("comments_parent", type_="foreignkey")
        comments.drop_column("parent_id")
    op.drop_index("posts_published", "posts")
    op.execute("DELETE FROM posts WHERE published_us IS NULL")
    op.drop_column("posts", "published_us")
    op.create_table(
        "author_counts",
        sa.Column("author_id", sa.String(64), primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO author_counts (author_id, count, version) "
        "SELECT author_id, COUNT(*), MAX(created_us) FROM posts GROUP BY author_id"
    )
    create_outbox(op)
    drop_event_tables(op)
