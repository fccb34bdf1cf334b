"""Faults of a PostgreSQL server, each undone in its end. What runs the server is none of their business."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import psycopg

from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer

MINE = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename = current_user"
OTHERS = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename <> current_user"


class Target(Protocol):
    """A server that can be hurt: see `tests.support.postgres.PostgresServer`."""

    def connect(self, database: str = ...) -> psycopg.Connection: ...

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
    """It stands still: its kernel takes connections and requests, and nothing answers them."""
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
def connections_taken(server: Target) -> Iterator[Callable[[], int]]:
    """Administrators hold every connection but those that are kept for them: those of the services are ended meanwhile.

    They come in where a service, whose log-in holds a place for a moment as well, would be before anybody else. Gives a
    function that tells how many connections are the services'.
    """
    with contextlib.ExitStack() as held:
        administrator = held.enter_context(contextlib.closing(server.connect()))

        def number(query: str) -> int:
            found = administrator.execute(query).fetchone()
            assert found is not None
            return int(found[0])

        kept = number("SELECT current_setting('superuser_reserved_connections')")
        places = number("SELECT current_setting('max_connections')") - kept

        def take_all() -> bool:
            number(f"SELECT count(pg_terminate_backend(pid, 1000)) {OTHERS}")
            while number(f"SELECT count(*) {MINE}") < places:
                held.enter_context(contextlib.closing(server.connect()))
            return number(f"SELECT count(*) {OTHERS}") == 0

        eventually(take_all, 20)
        yield lambda: number(f"SELECT count(*) {OTHERS}")


@contextlib.contextmanager
def table_locked(server: Target, database: str, table: str) -> Iterator[None]:
    """Another session holds a table locked, as a careless change of its schema does."""
    with contextlib.closing(server.connect(database)) as connection, connection.transaction():
        connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
