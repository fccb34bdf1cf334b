"""The kit's Database on both kinds of server, empty and migrated, for tests of stores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import MetaData
from sqlalchemy.engine import make_url

from services.kit.db import Database
from tests.support.postgres import PostgresServer

KINDS = ("sqlite", "postgresql")


@contextlib.contextmanager
def database(
    kind: str, folder: Path, server: PostgresServer, metadata: MetaData, migrations: Path
) -> Iterator[Database]:
    """An SQLite file in `folder`, or a database of its own on the server."""
    url = make_url(f"sqlite:///{folder}/test.db" if kind == "sqlite" else server.database())
    if kind == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    made = Database(url, metadata=metadata, migrations=migrations, timeout_s=10)
    made.migrate()
    try:
        yield made
    finally:
        made.dispose()
