"""Which databases the services are tested on, and a fresh one for each that asks.

The services' own tests run on SQLite; with `make test BACKENDS=full` each runs on PostgreSQL as well, through the fixture
`backend`. What depends on a server's own locking runs on both in any case: see `on_both`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import MetaData
from sqlalchemy.engine import make_url

from services.kit.db.session import Database
from tests.support.postgres import PostgresServer

KINDS = ("sqlite", "postgresql")
CHOSEN = KINDS if os.environ.get("BACKENDS") == "full" else ("sqlite",)

on_both = pytest.mark.parametrize("backend", KINDS, indirect=True, scope="module")
on_postgresql = pytest.mark.parametrize("backend", ["postgresql"], indirect=True, scope="module")


@dataclass(frozen=True)
class Backend:
    """Where the instances of a test keep their data: SQLite files without a server, else databases on it."""

    server: PostgresServer | None

    def databases(self, *services: str) -> dict[str, str]:
        """Service → `DATABASE_URL` of an empty database; nothing for SQLite, whose file lies in the instances' DATA_DIR."""
        return {} if self.server is None else {name: self.server.database(name) for name in services}

    def env(self, service: str) -> dict[str, str]:
        """The same for one service, as environment of its instances."""
        return {} if self.server is None else {"DATABASE_URL": self.server.database(service)}


@contextlib.contextmanager
def database(
    request: pytest.FixtureRequest, folder: Path, metadata: MetaData, migrations: Path | None = None
) -> Iterator[Database]:
    """The kit's Database for tests of stores, migrated: by the fixture's parameter an SQLite file in `folder`, or on the server."""
    url = make_url(f"sqlite:///{folder}/test.db")
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = make_url(server.database()).set(drivername="postgresql+psycopg")
    made = Database(url, metadata=metadata, migrations=migrations, timeout_s=10)
    made.migrate()
    try:
        yield made
    finally:
        made.dispose()


def shared(metadata: MetaData, migrations: Path | None = None) -> tuple[Any, Any]:
    """The fixtures `tables`, a file's tables on a real SQLite file and a real PostgreSQL, and `db`: the same, empty for each test."""

    @pytest.fixture(scope="module", params=KINDS)
    def tables(
        request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Database]:
        with database(request, tmp_path_factory.mktemp("db"), metadata, migrations) as made:
            yield made

    @pytest.fixture
    def db(tables: Database) -> Database:
        with tables.session() as session:
            for table in reversed(metadata.sorted_tables):
                session.execute(table.delete())
        return tables

    return tables, db


def migrated(service: ModuleType, metadata: MetaData) -> tuple[Any, Any]:
    """`shared` for a service's tables, as its migrations make them."""
    return shared(metadata, Path(service.__file__ or "").parent / "migrations")
