"""How connections to PostgreSQL are set up, so that nothing it does, or does not do, holds a request without an end.

Imported where there is such a database only: psycopg is some megabytes for nothing beside SQLite.
"""

from __future__ import annotations

import time
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext

# A connection that only reads does not notice that another server has taken the place of its own: after that time it is replaced.
RECYCLE_S = 300
# With a refused write all pooled connections go; while writes stay refused, no more often than that.
DROP_EVERY_S = 2.0


class Connection(psycopg.Connection[Any]):
    """Closes itself when its server has said nothing for too long: a server that is frozen, or cut off, sends no error.

    `ping_s` is for what is asked outside of a transaction, as SQLAlchemy asks a pooled connection before it is used;
    `answer_s` for everything else, and more than the server's own limits.
    """

    ping_s: float
    answer_s: float | None

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """Run psycopg's generator to its end. Raises psycopg.OperationalError."""
        if timeout is None:
            timeout = self.ping_s if self.autocommit else self.answer_s
        began = time.monotonic()
        try:
            return super().wait(gen, interval, timeout)
        except psycopg.OperationalError:
            if timeout is None or time.monotonic() - began < timeout:
                raise
            self.close()
            raise psycopg.OperationalError("the server does not answer") from None


def make_engine(url: URL, *, timeout_s: float, statement_s: float, **options: Any) -> Engine:
    """An engine that waits `timeout_s` for a connection, a sign of life or a lock, and `statement_s` for a statement; 0 sets no end."""
    limits = {
        "lock_timeout": timeout_s,
        "statement_timeout": statement_s,
        "idle_in_transaction_session_timeout": statement_s,
    }
    arguments = {
        "connect_timeout": max(1, int(timeout_s)),
        "options": " ".join(f"-c {name}={int(seconds * 1000)}" for name, seconds in limits.items()),
    }
    engine = create_engine(url, pool_pre_ping=True, pool_recycle=RECYCLE_S, connect_args=arguments, **options)

    @event.listens_for(engine, "do_connect")
    def connect(_: Any, __: Any, cargs: Any, cparams: Any) -> Connection:
        made = Connection.connect(*cargs, **cparams)
        made.ping_s = timeout_s
        made.answer_s = statement_s + timeout_s if statement_s else None
        return made

    @event.listens_for(engine, "checkin")
    def returned(made: Connection | None, _: Any) -> None:
        # SQLAlchemy leaves False, which asks for writes at each BEGIN: a replica would refuse to read as well.
        if made is not None and not made.closed and made.read_only is False:
            made.read_only = None

    _follow_writes(engine)
    return engine


def _follow_writes(engine: Engine) -> None:
    dropped = -DROP_EVERY_S

    @event.listens_for(engine, "handle_error")
    def refused(context: ExceptionContext) -> None:
        """A server that takes no writes has become another one's replica: new connections may lead to the one that does."""
        if not isinstance(context.original_exception, psycopg.errors.ReadOnlySqlTransaction):
            return
        used = context.connection.connection.dbapi_connection if context.connection is not None else None
        if used is None or used.read_only:
            return  # this transaction had promised to write nothing
        nonlocal dropped
        now = time.monotonic()
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = now - dropped >= DROP_EVERY_S
        if context.invalidate_pool_on_disconnect:
            dropped = now
