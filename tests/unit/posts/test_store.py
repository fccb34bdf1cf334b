"""Posts and the count of them, on a real database as its migrations make it."""

from __future__ import annotations

from services.kit.db.session import Database
from services.posts import store


def test_each_post_raises_count_and_version_and_each_deletion_lowers_the_count(db: Database) -> None:
    with db.session() as session:
        assert store.count_posts(session, "anna", +1, 1000) == {"count": 1, "version": 1000}
        assert store.count_posts(session, "anna", +1, 1000) == {"count": 2, "version": 1001}
        assert store.count_posts(session, "anna", -1, 5000) == {"count": 1, "version": 5000}
