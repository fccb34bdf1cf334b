"""The one statement that SQLAlchemy does not spell the same for SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import literal_column
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session


def insert_new(session: Session, model: type[DeclarativeBase], **values: Any) -> bool:
    """INSERT … ON CONFLICT DO NOTHING: whether the row went in. False means that some unique value is taken.

    Where an IntegrityError would end a PostgreSQL transaction, this leaves it usable; and as a write it takes
    SQLite's lock at once, so that what is read after it cannot have changed by commit time.
    """
    dialect = session.get_bind().dialect.name
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    # Not by rowcount: psycopg answers -1 for an INSERT made this way.
    written = insert(model).values(**values).on_conflict_do_nothing().returning(literal_column("1"))
    return session.execute(written).first() is not None
