"""The counts owed to users: written with the post, in one transaction, and settled once users know them."""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, String, select, text, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.posts.domain import AuthorCount
from services.posts.tables import Base

# The request itself delivers right after the commit; until then the flusher keeps its hands off.
DELIVERY_LEASE_US = 3_000_000


class AuthorCountRow(Base):
    """`due_us` is when users must next be told of `version`; empty when they know."""

    __tablename__ = "author_counts"
    author_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    count: Mapped[int] = mapped_column(Integer)
    version: Mapped[int] = mapped_column(BigInteger)
    due_us: Mapped[int | None] = mapped_column(BigInteger)
    attempts: Mapped[int] = mapped_column(Integer)


def owe_count(session: Session, author_id: str, difference: int, now_us: int) -> None:
    """Count the author's posts on or back, and owe users the result.

    The version is the time, or one more than the last: it goes on growing even after this database was lost
    and started anew, when users would not listen to a version 1.
    """
    session.execute(
        text(
            "INSERT INTO author_counts (author_id, count, version, due_us, attempts) "
            "VALUES (:author, :difference, :now, :due, 0) ON CONFLICT (author_id) DO UPDATE SET "
            "count = author_counts.count + :difference, due_us = :due, attempts = 0, "
            "version = CASE WHEN author_counts.version < :now THEN :now ELSE author_counts.version + 1 END"
        ),
        {"author": author_id, "difference": difference, "now": now_us, "due": now_us + DELIVERY_LEASE_US},
    )


def owed_count(session: Session, author_id: str) -> AuthorCount | None:
    """What users must be told of the author; None when they know."""
    row = session.get(AuthorCountRow, author_id)
    if row is None or row.due_us is None:
        return None
    return AuthorCount(row.author_id, row.count, row.version, row.attempts)


def due_counts(session: Session, now_us: int, limit: int) -> list[tuple[str, int]]:
    """(author, when it was due) of what is overdue, the longest overdue first."""
    query = (
        select(AuthorCountRow.author_id, AuthorCountRow.due_us)
        .where(AuthorCountRow.due_us <= now_us)
        .order_by(AuthorCountRow.due_us)
        .limit(limit)
    )
    return [(author, due) for author, due in session.execute(query) if due is not None]


def claim_count(session: Session, author_id: str, seen_due_us: int, until_us: int) -> AuthorCount | None:
    """Take one overdue delivery for this instance until `until_us`; None if another instance has been faster."""
    claimed = session.execute(
        update(AuthorCountRow)
        .where(AuthorCountRow.author_id == author_id, AuthorCountRow.due_us == seen_due_us)
        .values(due_us=until_us, attempts=AuthorCountRow.attempts + 1)
        .returning(AuthorCountRow.count, AuthorCountRow.version, AuthorCountRow.attempts)
        .execution_options(synchronize_session=False)
    ).first()
    return AuthorCount(author_id, *claimed) if claimed else None


def settle_count(session: Session, told: AuthorCount) -> None:
    """Users know this version. A newer one stays owed."""
    session.execute(
        update(AuthorCountRow)
        .where(AuthorCountRow.author_id == told.author_id, AuthorCountRow.version == told.version)
        .values(due_us=None, attempts=0)
        .execution_options(synchronize_session=False)
    )


def postpone_count(session: Session, told: AuthorCount, due_us: int) -> None:
    """This version could not be delivered: try again at `due_us`."""
    session.execute(
        update(AuthorCountRow)
        .where(AuthorCountRow.author_id == told.author_id, AuthorCountRow.version == told.version)
        .values(due_us=due_us)
        .execution_options(synchronize_session=False)
    )
