"""Sessions and migrations on a real PostgreSQL."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from services.kit.db.migrate import MigrationError, lock
from services.kit.db.session import Database, database_url, passes
from services.kit.settings import ServiceSettings
from tests.support.eventually import eventually, time_scale
from tests.support.postgres import PostgresServer, frozen, postgres, replica
from tests.unit.kit.test_db import Base, Counter, migrations


def database(url: str, folder: Path | None = None, timeout_s: float = 5.0, pool_size: int = 2) -> Database:
    made = database_url(ServiceSettings(database_url=SecretStr(url)), "hello")
    return Database(made, metadata=Base.metadata, migrations=folder, pool_size=pool_size, timeout_s=timeout_s)


def _migrate(url: str, folder: Path) -> None:
    db = database(url, folder)
    db.migrate()
    with db.session(read_only=True) as session:
        assert session.execute(text("SELECT count(*) FROM second")).scalar() == 1


def test_instances_that_start_at_once_migrate_once(postgres_server: PostgresServer, tmp_path: Path) -> None:
    url, folder = postgres_server.database(), migrations(tmp_path, "first", "second")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_migrate, args=(url, folder)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60 * time_scale())
    assert [process.exitcode for process in processes] == [0] * 2


def test_migration_lock_is_waited_for_and_then_given_up(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url, folder = postgres_server.database(), migrations(tmp_path, "first")
    holder, other = database(url), database(url, folder)
    with lock(holder.engine, wait_s=1), pytest.raises(MigrationError):
        other.migrate(wait_s=0.3)
    other.migrate(wait_s=1)


def test_migration_takes_its_time_and_a_request_does_not(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.kit.db.session.STATEMENT_TIMEOUT_S", 0.3)
    folder = migrations(tmp_path, "first")
    slow = folder / "versions" / "0001_first.py"
    slow.write_text(slow.read_text().replace("time.sleep(0.2)", 'op.execute("SELECT pg_sleep(1)")'))
    db = database(postgres_server.database(), folder, timeout_s=0.3, pool_size=1)
    db.migrate()
    with pytest.raises(OperationalError) as refusal, db.session() as session:
        session.execute(text("SELECT pg_sleep(1)"))
    assert passes(refusal.value)


def test_failed_migration_leaves_the_schema_before_it(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url, folder = postgres_server.database(), migrations(tmp_path, "first", "second")
    broken = folder / "versions" / "0002_second.py"
    broken.write_text(broken.read_text().replace("VALUES (0)", "VALUES ('oops')"))
    db = database(url, folder)
    with pytest.raises(DBAPIError):
        db.migrate()
    with db.session(read_only=True) as session:
        names = set(session.execute(text("SELECT tablename FROM pg_tables")).scalars())
    assert "first" in names
    assert "second" not in names


def test_lock_held_by_another_is_given_up_in_time(postgres_server: PostgresServer) -> None:
    url = postgres_server.database()
    db, other = database(url, timeout_s=0.3), database(url)
    db.migrate()
    with db.session() as session:
        session.add(Counter(id=1, n=0))

    def write() -> None:
        with db.session() as session:
            session.get_one(Counter, 1, with_for_update=True)

    with other.session() as held:
        held.get_one(Counter, 1, with_for_update=True)
        started = time.monotonic()
        with pytest.raises(OperationalError) as refusal:
            write()
        assert time.monotonic() - started < 3 * time_scale()
    assert passes(refusal.value)
    write()


@pytest.mark.parametrize(
    "mistake", ["SELECT 1 FROM no_table", "SELECT no_column", "SELECT repeat('x', 1073741824)", "SELECT 1/0"]
)
def test_mistake_in_sql_does_not_pass(postgres_server: PostgresServer, mistake: str) -> None:
    db = database(postgres_server.database())
    with pytest.raises(DBAPIError) as refusal, db.session() as session:
        session.execute(text(mistake))
    assert not passes(refusal.value)


def test_read_only_session_is_read_only_on_the_server_too(postgres_server: PostgresServer) -> None:
    db = database(postgres_server.database())
    db.migrate()

    def write() -> None:
        with db.session(read_only=True) as session:
            session.execute(text("INSERT INTO counter (id, n) VALUES (9, 9)"))

    with pytest.raises(DBAPIError, match="read-only"):
        write()
    with db.session() as session:
        session.add(Counter(id=9, n=9))


def test_replica_is_read_and_a_refused_write_leads_to_new_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.kit.db.postgres.DROP_EVERY_S", 60.0)
    with postgres(durable=True) as server:
        db = database(server.database(), pool_size=3)
        db.migrate()

        def backends() -> set[int]:
            """Of three sessions at once."""
            with ExitStack() as stack:
                sessions = [stack.enter_context(db.session(read_only=True)) for _ in range(3)]
                return {int(each.execute(text("SELECT pg_backend_pid()")).scalar_one()) for each in sessions}

        def write(read_only: bool = False) -> bool:
            with db.session(read_only=read_only) as session:
                session.execute(text("UPDATE counter SET n = n + 1"))
            return True

        before = backends()
        with pytest.raises(DBAPIError, match="read-only") as ours:
            write(read_only=True)
        assert not ours.value.connection_invalidated
        assert backends() == before
        with replica(server):
            before = eventually(backends, 5)
            assert backends() == before
            with pytest.raises(DBAPIError, match="read-only") as refusal:
                write()
            assert refusal.value.connection_invalidated
            after = backends()
            assert not after & before, "a reader would go on with the server that has been replaced"
            with pytest.raises(DBAPIError, match="read-only") as refusal:
                write()
            assert refusal.value.connection_invalidated
            assert len(backends() & after) == 2, "each refused write costs all connections"
        eventually(write, 5)


def test_server_that_stands_still_is_an_error_in_time(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a transaction, with a pooled connection, and with a new one."""
    monkeypatch.setattr("services.kit.db.session.STATEMENT_TIMEOUT_S", 0.5)
    db = database(postgres_server.database(), timeout_s=0.5)

    def ask() -> bool:
        with db.session(read_only=True) as session:
            return bool(session.execute(text("SELECT true")).scalar())

    def ask_and_freeze(faults: ExitStack) -> None:
        with db.session() as session:
            session.execute(text("SELECT 1"))
            faults.enter_context(frozen(postgres_server))
            session.execute(text("SELECT 2"))

    def refused_after(action: Callable[[], object]) -> float:
        started = time.monotonic()
        with pytest.raises(OperationalError):
            action()
        return time.monotonic() - started

    assert ask()
    with ExitStack() as faults:
        assert refused_after(lambda: ask_and_freeze(faults)) < 3 * time_scale()
        assert refused_after(ask) < 3 * time_scale()
    eventually(ask, 5)
    with frozen(postgres_server):
        assert refused_after(ask) < 3 * time_scale(), "the connection had been idle"
    eventually(ask, 5)


def test_unreachable_server_is_an_error_in_time() -> None:
    db = database("postgresql://nobody@127.0.0.1:1/none", timeout_s=1)
    started = time.monotonic()
    with pytest.raises(OperationalError), db.session() as session:
        session.execute(text("SELECT 1"))
    assert time.monotonic() - started < 5 * time_scale()
