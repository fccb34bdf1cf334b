"""Faults of a PostgreSQL server, each undone in its end. What runs the server is none of their business."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import psycopg
from psycopg import sql

from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer

OTHERS = (
    "FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename NOT IN (%(mine)s, current_user)"
)


class Target(Protocol):
    """A server that can be hurt: see `tests.support.postgres.PostgresServer`."""

    def connect(self, database: str = ...) -> psycopg.Connection: ...

    def database(self, service: str = ...) -> str: ...

    def crash(self) -> None: ...

    def start(self) -> None: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


@contextlib.contextmanager
def crashed(server: Target) -> Iterator[None]:
    """Shut down at once, without a word to anybody; in the end started again on what its disk holds."""
    server.crash()
    try:
        yield
    finally:
        server.start()


@contextlib.contextmanager
def frozen(server: Target) -> Iterator[None]:
    """It stands still: its kernel takes connections and requests, and nobody answers them."""
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


@contextlib.contextmanager
def replica(server: PostgresServer) -> Iterator[None]:
    """Restarted as a replica, as one whose place another has taken; in the end it is promoted again."""
    server.crash()
    (server.data / "standby.signal").touch()
    server.start()
    try:
        yield
    finally:
        with contextlib.closing(server.connect()) as administrator:
            administrator.execute("SELECT pg_promote(true, 30)")


@contextlib.contextmanager
def shut_out(administrator: psycopg.Connection, but: str) -> Iterator[None]:
    """Nobody but this role and administrators may log in: they come faster than a single one can take their places."""
    found = administrator.execute(
        "SELECT rolname FROM pg_roles WHERE rolcanlogin AND NOT rolsuper AND rolname <> %s", [but]
    )
    roles = [sql.Identifier(row[0]) for row in found]

    def let(login: str) -> None:
        for role in roles:
            administrator.execute(sql.SQL("ALTER ROLE {} {}").format(role, sql.SQL(login)))

    let("NOLOGIN")
    try:
        yield
    finally:
        let("LOGIN")


@contextlib.contextmanager
def connections_taken(server: Target) -> Iterator[Callable[[], int]]:
    """Somebody else holds every connection: those of the services are ended, and taken before they come back.

    Gives a function that tells how many connections are not his.
    """
    url = server.database("greedy")
    with contextlib.ExitStack() as held:
        # PostgreSQL keeps a few places free for him.
        administrator = held.enter_context(contextlib.closing(server.connect()))
        mine = psycopg.conninfo.conninfo_to_dict(url)["user"]
        sessions: list[psycopg.Connection] = []

        def number(query: str) -> int:
            found = administrator.execute(query, {"mine": mine}).fetchone()
            assert found is not None
            return int(found[0])

        def take_all() -> bool:
            number(f"SELECT count(pg_terminate_backend(pid, 1000)) {OTHERS}")
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    one = psycopg.connect(url, connect_timeout=5)
                    sessions.append(held.enter_context(contextlib.closing(one)))
            # By the number: who is about to come or go holds a place and is not in the list yet, or no more.
            there = administrator.execute(
                "SELECT usename, backend_type, count(*) FROM pg_stat_activity GROUP BY 1, 2"
            ).fetchall()
            assert len(sessions) == places - 1, f"{len(sessions)} of {places}: {there}"
            return True

        kept = number("SELECT current_setting('superuser_reserved_connections')")
        places = number("SELECT current_setting('max_connections')") - kept
        with shut_out(administrator, mine):
            eventually(take_all, 20)
        yield lambda: number(f"SELECT count(*) {OTHERS}")


@contextlib.contextmanager
def table_locked(server: Target, database: str, table: str) -> Iterator[None]:
    """Somebody else holds a table for himself, as a careless change of its schema does."""
    with contextlib.closing(server.connect(database)) as connection, connection.transaction():
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
