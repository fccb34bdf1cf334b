"""Schema migrations by Alembic, run at start by whichever instance comes first while the others wait.

A service's `migrations/versions/` folder holds its revision files (`0001_accounts.py`: `revision`, `down_revision`,
`upgrade`, `downgrade`) and nothing else is needed: the environment is the kit's (`services/kit/db/alembic/env.py`).
"""

from __future__ import annotations

import fcntl
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from sqlalchemy import Engine, MetaData, text

log = structlog.get_logger(__name__)

ENVIRONMENT = Path(__file__).parent / "alembic"
POLL_S = 0.05


class MigrationError(Exception):
    """The schema could not be brought up to date."""


@contextmanager
def lock(engine: Engine, *, wait_s: float) -> Iterator[None]:
    """Hold the database's migration lock: a file beside an SQLite database, an advisory lock in PostgreSQL.

    Both go when their process dies. Raises MigrationError when it is not free within `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    if engine.url.get_backend_name() == "sqlite":
        if not engine.url.database or engine.url.database == ":memory:":
            yield
            return
        with _file_lock(Path(engine.url.database + ".migrate.lock"), deadline):
            yield
        return
    with _advisory_lock(engine, deadline):
        yield


@contextmanager
def _file_lock(path: Path, deadline: float) -> Iterator[None]:
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _wait(deadline)
        yield


@contextmanager
def _advisory_lock(engine: Engine, deadline: float) -> Iterator[None]:
    key = zlib.crc32(b"breakwater-migrate:" + (engine.url.database or "").encode())
    # A session-level lock on a connection outside of any transaction, so that waiting holds nothing else up.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}):
            _wait(deadline)
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": key})


def _wait(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise MigrationError("another instance has been migrating the database for too long")
    time.sleep(POLL_S)


def upgrade(engine: Engine, folder: Path, metadata: MetaData | None) -> None:
    """Run every revision of `folder` that the database has not seen, each in one transaction."""
    versions = folder / "versions"
    if not versions.is_dir():
        raise MigrationError(f"no revisions at {versions}")
    # 10 MB in the master and in the worker of each instance, for nothing where there is no database.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(ENVIRONMENT).replace("%", "%%"))
    config.set_main_option("version_locations", str(versions).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.attributes["target_metadata"] = metadata
    started = time.monotonic()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()
    log.info("database migrated", duration_s=round(time.monotonic() - started, 3))
