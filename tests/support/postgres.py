"""A real PostgreSQL in a temporary folder, with a database and a role of its own for each asker."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
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
        os.kill(self.process.pid, signal.SIGSTOP)
        self._signal_children(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_children(signal.SIGCONT)
        os.kill(self.process.pid, signal.SIGCONT)

    def _signal_children(self, number: int) -> None:
        """Each has a process group of its own."""
        pid = self.process.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)

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
