"""Posts and the count of them, on a real database as its migrations make it."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.kit.db.session import Database
from services.posts import store


def test_migrations_make_what_the_models_say(db: Database) -> None:
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        drift = compare_metadata(context, store.Base.metadata)
    # The models name no indexes, and know nothing of the search: its tables on SQLite, its column on PostgreSQL.
    known = ("remove_table", "remove_column", "remove_index", "remove_constraint")
    assert [d for d in drift if not (isinstance(d, tuple) and d[0] in known)] == []


def test_each_post_raises_count_and_version_and_each_deletion_lowers_the_count(db: Database) -> None:
    with db.session() as session:
        assert store.count_posts(session, "anna", +1, 1000) == {"count": 1, "version": 1000}
        assert store.count_posts(session, "anna", +1, 1000) == {"count": 2, "version": 1001}
        assert store.count_posts(session, "anna", -1, 5000) == {"count": 1, "version": 5000}
