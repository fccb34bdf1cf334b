"""A real SQLite file with the tables of posts, as the migration makes them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.orm import sessionmaker


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[sessionmaker]:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/posts.db", connect_args={"timeout": 5})
    with engine.begin() as connection:
        connection.execute(sa.text("PRAGMA journal_mode=WAL"))
        migration = import_module("services.posts.migrations.versions.0001_posts")
        with Operations.context(MigrationContext.configure(connection)):
            migration.upgrade()
    yield sessionmaker(engine)
    engine.dispose()
