"""Database sessions: SQLAlchemy 2 on SQLite (WAL) by default, on PostgreSQL by `DATABASE_URL`.

Nothing here waits without an end: pools are bounded, and connecting, waiting for a lock, for a pooled connection and for
an answer each have a time. What runs out of it leaves the service as 503 with `Retry-After` (see `errors`).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Engine, MetaData, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from services.kit.db import migrate
from services.kit.settings import ServiceSettings, secret

log = structlog.get_logger(__name__)

# PostgreSQL, appendix A: connection, transaction rollback (deadlock), resources, operator intervention (a timeout, a shutdown).
PASSING_CLASSES = ("08", "40", "53", "57")
LOCK_NOT_AVAILABLE = "55P03"
READ_ONLY = "kit_read_only"
STATEMENT_TIMEOUT_S = 10.0
# Within what HAProxy gives a health check (1 s), which may come to stand behind a request that waits.
PLACE_WAIT_S = 0.5

# Sessions that jobs hold at once, beside those of requests.
BACKGROUND_PLACES = 2
_BACKGROUND: ContextVar[bool] = ContextVar("kit_background", default=False)
_OPEN: ContextVar[Session | None] = ContextVar("kit_session", default=None)


@contextmanager
def background() -> Iterator[None]:
    """Sessions that are opened inside, in this thread, take the places of background work."""
    before = _BACKGROUND.set(True)
    try:
        yield
    finally:
        _BACKGROUND.reset(before)


def open_session() -> Session | None:
    """The session that is open in this thread or greenlet, the innermost one."""
    return _OPEN.get()


def database_url(settings: ServiceSettings, service: str) -> URL:
    """The URL of a service's database; `sqlite:///<DATA_DIR>/<service>.db` unless `DATABASE_URL` says otherwise."""
    given = secret(settings.database_url)
    if not given:
        return make_url(f"sqlite:///{settings.data_dir.absolute() / service}.db")
    url = make_url(given)
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    return url


def passes(error: DBAPIError) -> bool:
    """Whether the statement may well succeed a moment later: a lock, or a server that is away, full or going. Else it is a mistake."""
    if error.connection_invalidated:
        return True
    if not isinstance(error, OperationalError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        # Whatever goes wrong is an OperationalError there: a missing table as well. The low byte is the plain code.
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in (
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_LOCKED,
        )
    state = getattr(error.orig, "sqlstate", None)
    # Without a state psycopg had no answer at all.
    return state is None or state == LOCK_NOT_AVAILABLE or state[:2] in PASSING_CLASSES


class Places:
    """So many sessions at once. One that finds no place free waits for it, but not while that has just been in vain.

    What waits for a lock, or for a server that says nothing, keeps its place for seconds. Were the others to wait for it,
    the database would soon hold every thread, and with them what needs no database: health checks, the cache.
    """

    def __init__(self, count: int, wait_s: float) -> None:
        self._free = threading.BoundedSemaphore(count)
        self._wait_s = wait_s
        self._in_vain = False

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place. Raises sqlalchemy.exc.TimeoutError."""
        if not self._free.acquire(timeout=0.0 if self._in_vain else self._wait_s):
            self._in_vain = True
            raise PoolTimeout("every place is taken by a session that does not end")
        try:
            yield
        finally:
            self._in_vain = False
            self._free.release()


class Database:
    """The database of one service. The engine is made at first use, so that nothing is shared across a fork."""

    def __init__(
        self,
        url: URL,
        *,
        metadata: MetaData | None = None,
        migrations: Path | None = None,
        pool_size: int = 8,
        timeout_s: float = 2.0,
    ) -> None:
        self.url = url
        self._metadata = metadata
        self._migrations = migrations
        self._pool_size = pool_size
        self._timeout_s = timeout_s
        self._places = Places(pool_size, min(timeout_s, PLACE_WAIT_S))
        self._background = Places(BACKGROUND_PLACES, timeout_s)
        self._lock = threading.Lock()
        self._engine: Engine | None = None

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def engine(self) -> Engine:
        """The engine of this process. At most `pool_size` connections, and `BACKGROUND_PLACES`."""
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    self._engine = self._make_engine(STATEMENT_TIMEOUT_S, self._pool_size + BACKGROUND_PLACES)
        return self._engine

    @contextmanager
    def session(self, *, read_only: bool = False) -> Iterator[Session]:
        """A session in a transaction: committed at the end, rolled back by an exception. At most `pool_size` at once,
        and `BACKGROUND_PLACES` of background work.

        On SQLite it begins by taking the write lock (`BEGIN IMMEDIATE`), so that what it reads is still true when it
        writes; there is one writer at a time, so keep it short and call no other service from inside. With `read_only` it
        takes none, runs beside writers, and refuses to flush.
        """
        places = self._background if _BACKGROUND.get() else self._places
        with places.one():
            session = Session(self.engine, expire_on_commit=False)
            before = _OPEN.set(session)
            try:
                if read_only:
                    session.info[READ_ONLY] = True
                    session.connection(execution_options=self._read_only_options())
                yield session
                session.commit()
            except BaseException:
                session.rollback()
                raise
            finally:
                _OPEN.reset(before)
                session.close()

    def warm(self) -> None:
        """Open the first connection before a request needs it: with the driver's import it can take longer than a place is waited for.

        A database that is away is found by the requests that need it.
        """
        if self._migrations is None and self._metadata is None:
            return
        try:
            with self.session(read_only=True):
                pass
        except SQLAlchemyError as error:
            log.warning("first connection to the database failed", reason=str(error)[:200])

    def migrate(self, *, wait_s: float = 60.0) -> None:
        """Bring the schema up to date; safe when several instances do it at once. Raises migrate.MigrationError.

        Without a migrations folder the tables of the metadata are made as they are, if there is metadata.
        """
        if self._migrations is None and self._metadata is None:
            return
        if self.is_sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        # One of its own on a server: an index may take longer to build than a request may last. Two connections: one holds the lock.
        engine = self.engine if self.is_sqlite else self._make_engine(statement_s=0, connections=2)
        try:
            with migrate.lock(engine, wait_s=wait_s):
                if self._migrations is not None:
                    migrate.upgrade(engine, self._migrations, self._metadata)
                elif self._metadata is not None:
                    self._metadata.create_all(engine)
        finally:
            if engine is not self._engine:
                engine.dispose()

    def dispose(self) -> None:
        """Close every pooled connection; before a fork, and at the end of a test."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None

    def _read_only_options(self) -> dict[str, Any]:
        return {READ_ONLY: True} if self.is_sqlite else {"postgresql_readonly": True}

    def _make_engine(self, statement_s: float, connections: int) -> Engine:
        options: dict[str, Any] = {
            "pool_size": connections,
            "max_overflow": 0,
            "pool_timeout": self._timeout_s,
        }
        if self.is_sqlite:
            options["connect_args"] = {"timeout": self._timeout_s, "check_same_thread": False}
            engine = create_engine(self.url, **options)
            event.listen(engine, "connect", _sqlite_connect)
            event.listen(engine, "begin", _sqlite_begin)
            return engine
        from services.kit.db import postgres

        return postgres.make_engine(self.url, timeout_s=self._timeout_s, statement_s=statement_s, **options)


@event.listens_for(Session, "before_flush")
def _refuse_read_only(session: Session, *_: Any) -> None:
    if session.info.get(READ_ONLY) and (session.new or session.dirty or session.deleted):
        raise RuntimeError("this session is read-only")


def _sqlite_connect(connection: Any, _: Any) -> None:
    # The driver would begin transactions late and by itself; SQLAlchemy's "begin" event does it here.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # NORMAL under WAL loses no consistency in a power cut, only the last commits.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _sqlite_begin(connection: Any) -> None:
    deferred = connection.get_execution_options().get(READ_ONLY)
    connection.exec_driver_sql("BEGIN" if deferred else "BEGIN IMMEDIATE")
