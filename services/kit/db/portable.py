"""What SQLAlchemy does not spell the same for SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CursorResult, Integer, UpdateBase, literal_column
from sqlalchemy.orm import Session

# SQLite numbers rows by itself only in a column of exactly the type INTEGER.
NUMBER = BigInteger().with_variant(Integer(), "sqlite")


def insert_new(session: Session, model: Any, **values: Any) -> bool:
    """INSERT … ON CONFLICT DO NOTHING: whether the row went in. False means that some unique value is taken.

    Where an IntegrityError would end a PostgreSQL transaction, this leaves it usable; and as a write it takes
    SQLite's lock at once, so that what is read after it cannot have changed by commit time.
    """
    # Not by rowcount: psycopg answers -1 for an INSERT made this way.
    written = _insert(session, model).values(**values).on_conflict_do_nothing().returning(literal_column("1"))
    return session.execute(written).first() is not None


def upsert(session: Session, model: Any, **values: Any) -> None:
    """Write the row; one that has its primary key already takes these values."""
    key = [column.name for column in model.__table__.primary_key]
    changed = {name: value for name, value in values.items() if name not in key}
    written = _insert(session, model).values(**values)
    session.execute(written.on_conflict_do_update(index_elements=key, set_=changed))


def write(session: Session, statement: UpdateBase) -> int:
    """Run an UPDATE or a DELETE past the objects that the session holds; how many rows it changed."""
    done = session.execute(statement, execution_options={"synchronize_session": False})
    return done.rowcount if isinstance(done, CursorResult) else 0


def _insert(session: Session, model: Any) -> Any:
    # The other one is some megabytes for nothing.
    if session.get_bind().dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(model)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(model)
