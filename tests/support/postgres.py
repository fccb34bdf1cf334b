"""A real PostgreSQL in a temporary folder, with a database and a role of its own for each test, and what may go wrong with it."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psycopg

from stack.run import processes
from tests.support.eventually import eventually
from tests.support.servers import Process, ProcessEnded, _folder, free_port

# PostgreSQL refuses to run as root; this user is on every machine.
UNPRIVILEGED = "nobody"


@dataclass
class PostgresServer:
    """`database()` makes an empty database and gives its URL."""

    port: int
    process: Process
    data: Path
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def database(self, service: str = "test") -> str:
        """As a service has it in a real stack: the role in the URL owns this database, and can enter no other."""
        name = f"{service}_{next(self._numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE ROLE {name} LOGIN")
            connection.execute(f"CREATE DATABASE {name} OWNER {name}")
            connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
        return f"postgresql://{name}@127.0.0.1:{self.port}/{name}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """As the administrator, outside of any transaction."""
        return psycopg.connect(
            f"host=127.0.0.1 port={self.port} user=postgres dbname={database}",
            autocommit=True,
            connect_timeout=1,
        )

    def accepts(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            self.connect().close()
            return True
        return not self.process.running

    def start(self) -> None:
        """Start it (again) on the same data, and wait until it takes connections."""
        self.process.start()
        eventually(self.accepts, 15, every_s=0.05)
        self.process.must_run()

    def freeze(self) -> None:
        """Stop it where it stands: it neither answers nor closes anything."""
        os.kill(self.process.pid, signal.SIGSTOP)  # first, so that it makes no more children
        processes.send(signal.SIGSTOP, processes.tree(self.process.pid))

    def thaw(self) -> None:
        processes.send(signal.SIGCONT, processes.tree(self.process.pid))

    def crash(self) -> None:
        """What `pg_ctl stop -m immediate` does: every session is cut off at once, nothing is written down."""
        self.process.signal(signal.SIGQUIT)
        assert self.process.popen is not None
        self.process.popen.wait(timeout=15)


@contextlib.contextmanager
def postgres(*, durable: bool = False, **settings: object) -> Iterator[PostgresServer]:
    """A server; `settings` are those of postgresql.conf. Unless `durable` it syncs nothing, for nothing is kept."""
    with _folder(None, "postgres") as folder:
        drop: Sequence[str] = ()
        if os.geteuid() == 0:
            shutil.chown(folder, UNPRIVILEGED)
            drop = ("setpriv", f"--reuid={UNPRIVILEGED}", "--regid=nogroup", "--clear-groups")
        data, port = folder / "data", free_port()
        init = [program("initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"]
        done = subprocess.run([*drop, *init], capture_output=True, text=True, timeout=60, cwd=folder)
        if done.returncode:
            raise ProcessEnded(f"initdb: {done.stderr[-2000:]}")
        values: Mapping[str, object] = {"max_connections": 200, **({} if durable else OFF), **settings}
        argv = [program("postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
        argv += [f"--{name}={value}" for name, value in values.items()]
        server = PostgresServer(port, Process([*drop, *argv], folder / "log"), data)
        try:
            server.start()
            yield server
            server.crash()  # to SIGTERM it would wait for its clients to leave
        finally:
            server.process.stop()


# What loses acknowledged writes when the machine or the server dies.
OFF = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def program(name: str) -> str:
    """A program of PostgreSQL: Debian keeps them off PATH, in a folder for each version."""
    found = shutil.which(name) or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    if found is None:
        raise ProcessEnded(f"{name} is missing: install the package postgresql")
    return found


# -- faults, each undone in its end; what runs the server is none of their business

MINE = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename = current_user"
OTHERS = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename <> current_user"


class Target(Protocol):
    """A server that can be hurt: see `PostgresServer`."""

    def connect(self, database: str = ...) -> psycopg.Connection: ...

    def crash(self) -> None: ...

    def start(self) -> None: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


@contextlib.contextmanager
def crashed(server: Target) -> Iterator[None]:
    """Shut down at once, with no word to its clients; in the end started again on what its disk holds."""
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

    They come in where a service, whose log-in holds a place for a moment as well, would be before all others. Gives a
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
