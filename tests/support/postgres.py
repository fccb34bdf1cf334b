"""A real PostgreSQL in a temporary folder, with a database of its own for each asker."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tests.support.eventually import eventually
from tests.support.servers import Process, ProcessEnded, _folder, free_port

# PostgreSQL refuses to run as root; this user is on every machine.
UNPRIVILEGED = "nobody"


@dataclass
class PostgresServer:
    """`database()` makes an empty database and gives its URL."""

    port: int
    process: Process
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def database(self) -> str:
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def accepts(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self._dsn("postgres"), connect_timeout=1).close()
            return True
        return not self.process.running

    def _dsn(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname={database}"


@contextlib.contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A server without durability: nothing is kept, so nothing need be synced."""
    with _folder(None, "postgres") as folder:
        drop = []
        if os.geteuid() == 0:
            shutil.chown(folder, UNPRIVILEGED)
            drop = ["setpriv", f"--reuid={UNPRIVILEGED}", "--regid=nogroup", "--clear-groups"]
        data, port = folder / "data", free_port()
        init = [
            *drop,
            program("initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
        ]
        done = subprocess.run(init, capture_output=True, text=True, timeout=60, cwd=folder)
        if done.returncode:
            raise ProcessEnded(f"initdb: {done.stderr[-2000:]}")
        argv = [
            *drop,
            program("postgres"),
            "-D",
            str(data),
            "-p",
            str(port),
            "-h",
            "127.0.0.1",
            "-k",
            str(folder),
        ]
        server = PostgresServer(port, Process([*argv, "-F", "-c", "max_connections=200"], folder / "log"))
        server.process.start()
        try:
            eventually(server.accepts, 15, every_s=0.1)
            server.process.must_run()
            yield server
        finally:
            server.process.stop()


def program(name: str) -> str:
    """A program of PostgreSQL: Debian keeps them off PATH, in a folder for each version."""
    found = shutil.which(name) or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    if found is None:
        raise ProcessEnded(f"{name} is missing: install the package postgresql")
    return found
