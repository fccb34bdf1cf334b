"""Sessions, locks and migrations on SQLite, with several threads and several processes."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import MetaData, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.kit.db.migrate import MigrationError
from services.kit.db.session import Database, Places, database_url
from services.kit.settings import ServiceSettings
from tests.support.eventually import time_scale

REVISION = """
import sqlalchemy as sa
from alembic import op
import time
revision = "{revision}"
down_revision = {down}
def upgrade():
    time.sleep(0.2)
    op.create_table("{table}", sa.Column("id", sa.Integer, primary_key=True), sa.Column("n", sa.Integer))
    op.execute("INSERT INTO {table} (n) VALUES (0)")
def downgrade():
    op.drop_table("{table}")
"""


class Base(DeclarativeBase):
    pass


class Counter(Base):
    __tablename__ = "counter"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


def database(folder: Path, **options: object) -> Database:
    url = database_url(ServiceSettings(data_dir=folder), "hello")
    return Database(url, metadata=Base.metadata, **options)  # type: ignore[arg-type]


def with_row(folder: Path, **options: object) -> Database:
    db = database(folder, **options)
    db.migrate()
    with db.session() as session:
        session.add(Counter(id=1, n=0))
    return db


def migrations(folder: Path, *tables: str) -> Path:
    versions = folder / "migrations" / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    down: str | None = None
    for number, table in enumerate(tables, 1):
        revision = f"{number:04}"
        content = REVISION.format(revision=revision, down=repr(down), table=table)
        (versions / f"{revision}_{table}.py").write_text(content)
        down = revision
    return versions.parent


def test_default_is_a_file_of_the_services_name(tmp_path: Path) -> None:
    assert str(database_url(ServiceSettings(data_dir=tmp_path), "hello")) == f"sqlite:///{tmp_path}/hello.db"


def test_postgresql_url_gets_the_driver_that_is_installed() -> None:
    settings = ServiceSettings(database_url=SecretStr("postgresql://u:p@db/x"))
    assert database_url(settings, "hello").drivername == "postgresql+psycopg"


def test_sqlite_runs_with_wal_foreign_keys_and_busy_timeout(tmp_path: Path) -> None:
    db = with_row(tmp_path)
    with db.session(read_only=True) as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 1, "busy_timeout": 2000}


def test_session_commits_and_an_exception_rolls_back(tmp_path: Path) -> None:
    db = with_row(tmp_path)
    with db.session() as session:
        session.get_one(Counter, 1).n = 5

    def fail() -> None:
        with db.session() as session:
            session.get_one(Counter, 1).n = 6
            session.flush()
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    with db.session(read_only=True) as session:
        assert session.get_one(Counter, 1).n == 5


def test_read_then_write_loses_no_update_between_threads(tmp_path: Path) -> None:
    db = with_row(tmp_path, timeout_s=20)

    def add() -> None:
        for _ in range(25):
            with db.session() as session:
                session.get_one(Counter, 1).n += 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with db.session(read_only=True) as session:
        assert session.get_one(Counter, 1).n == 100


def test_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    db = with_row(tmp_path)
    with db.session() as writer:
        writer.get_one(Counter, 1).n = 9
        writer.flush()
        started = time.monotonic()
        with db.session(read_only=True) as reader:
            assert reader.get_one(Counter, 1).n == 0
        assert time.monotonic() - started < 1 * time_scale()


def test_read_only_session_refuses_to_write(tmp_path: Path) -> None:
    db = with_row(tmp_path)

    def write() -> None:
        with db.session(read_only=True) as session:
            session.get_one(Counter, 1).n = 1

    with pytest.raises(RuntimeError, match="read-only"):
        write()


def test_locked_database_gives_up_in_time(tmp_path: Path) -> None:
    db = with_row(tmp_path, timeout_s=0.3)
    other = sqlite3.connect(tmp_path / "hello.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()

    def write() -> None:
        with db.session() as session:
            session.get_one(Counter, 1).n = 1

    try:
        with pytest.raises(OperationalError, match="locked"):
            write()
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert 0.2 < time.monotonic() - started < 5 * time_scale()
    write()


def test_pool_is_bounded_and_gives_up_in_time(tmp_path: Path) -> None:
    db = with_row(tmp_path, pool_size=1, timeout_s=0.2)
    with db.session(read_only=True) as held:
        held.get_one(Counter, 1)
        with pytest.raises(PoolTimeout), db.session(read_only=True):
            pass


def test_nobody_waits_for_a_place_while_that_has_just_been_in_vain() -> None:
    places = Places(1, 0.3)

    def refused_after() -> float:
        started = time.monotonic()
        with pytest.raises(PoolTimeout), places.one():
            pass
        return time.monotonic() - started

    for _ in range(2):
        with places.one():
            assert refused_after() >= 0.3
            assert max(refused_after() for _ in range(5)) < 0.2
        with places.one():
            pass


def test_migrations_run_in_order_and_only_once(tmp_path: Path) -> None:
    db = database(tmp_path, migrations=migrations(tmp_path, "first"))
    db.migrate()
    db = database(tmp_path, migrations=migrations(tmp_path, "first", "second"))
    db.migrate()
    db.migrate()
    with db.session(read_only=True) as session:
        assert session.execute(text("SELECT count(*) FROM first")).scalar() == 1
        assert session.execute(text("SELECT count(*) FROM second")).scalar() == 1


def _migrate(folder: Path, migrations_folder: Path) -> None:
    db = database(folder, migrations=migrations_folder)
    db.migrate()
    with db.session(read_only=True) as session:
        assert session.execute(text("SELECT count(*) FROM second")).scalar() == 1


def test_instances_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    folder = migrations(tmp_path, "first", "second")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_migrate, args=(tmp_path, folder)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 2


def test_migration_lock_that_does_not_come_free_is_an_error_in_time(tmp_path: Path) -> None:
    import fcntl

    db = with_row(tmp_path)
    with (tmp_path / "hello.db.migrate.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(MigrationError):
            db.migrate(wait_s=0.2)
    db.migrate(wait_s=0.2)


def test_failed_migration_leaves_the_schema_before_it(tmp_path: Path) -> None:
    folder = migrations(tmp_path, "first", "second")
    broken = folder / "versions" / "0002_second.py"
    broken.write_text(broken.read_text().replace("VALUES (0)", "VALUES (oops)"))
    db = database(tmp_path, migrations=folder)
    with pytest.raises(OperationalError):
        db.migrate()
    with db.session(read_only=True) as session:
        names = {row[0] for row in session.execute(text("SELECT name FROM sqlite_master"))}
    assert "first" in names
    assert "second" not in names


def test_warm_opens_the_first_connection_and_outlives_a_database_that_is_away(tmp_path: Path) -> None:
    there = Database(make_url(f"sqlite:///{tmp_path}/warm.db"), metadata=MetaData())
    there.warm()
    assert there.engine.pool.checkedin() == 1
    away = Database(make_url("postgresql+psycopg://nobody@127.0.0.1:1/none"), metadata=MetaData())
    away.warm()
