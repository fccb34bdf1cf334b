"""Accounts in the database. Each function works in the transaction of the session it is given.

Times are Unix microseconds, so that a cursor can hold one exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Index, String, and_, delete, or_, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from services.kit.db.outbox import Owing
from services.kit.db.portable import insert_new, write
from services.users.domain import User, usernames


class Base(DeclarativeBase):
    pass


class UserRow(Base):
    """One account. `post_count_version` is the version that posts gave its last count: an older one changes nothing."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    email: Mapped[str] = mapped_column(String(254))
    email_key: Mapped[str] = mapped_column(String(254), unique=True)
    username: Mapped[str] = mapped_column(String(30), unique=True)
    first_name: Mapped[str] = mapped_column(String(100))
    last_name: Mapped[str] = mapped_column(String(100))
    post_count: Mapped[int] = mapped_column(BigInteger, default=0)
    post_count_version: Mapped[int] = mapped_column(BigInteger, default=0)
    version: Mapped[int] = mapped_column(BigInteger, default=1)
    created_us: Mapped[int] = mapped_column(BigInteger)
    updated_us: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_users_created", "created_us", "id"),)


class OutboxRow(Owing, Base):
    """Accounts that are gone here and whose credentials auth has still to remove."""


class Taken(Exception):
    """Another account has this value; `field` says which: `id`, `email` or `username`."""

    def __init__(self, field: str) -> None:
        self.field = field
        super().__init__(field)


def _user(row: UserRow) -> User:
    return User(
        id=row.id,
        email=row.email,
        username=row.username,
        first_name=row.first_name,
        last_name=row.last_name,
        post_count=row.post_count,
        version=row.version,
        created_us=row.created_us,
        updated_us=row.updated_us,
    )


@dataclass(frozen=True, slots=True)
class NewUser:
    """What auth knows of an account that is being opened."""

    id: str
    email: str
    first_name: str
    last_name: str


def create(session: Session, new: NewUser, now_us: int) -> tuple[User, bool]:
    """Open an account, once: the second time with the same id it answers what is there, and False.

    A registration that was broken off may come again with other names; they count until the owner has changed something.
    Raises Taken("email") when another account has the address.
    """
    key = new.email.lower()
    for username in usernames(new.email, new.id):
        if insert_new(
            session, UserRow, id=new.id, email=new.email, email_key=key, username=username, post_count=0,
            first_name=new.first_name, last_name=new.last_name, post_count_version=0, version=1,
            created_us=now_us, updated_us=now_us,
        ):  # fmt: skip
            return _user(session.get_one(UserRow, new.id)), True
        row = session.get(UserRow, new.id)
        if row is not None:
            if row.email_key != key:
                raise Taken("id")
            if row.version == 1:
                row.first_name, row.last_name = new.first_name, new.last_name
            return _user(row), False
        if session.scalar(select(UserRow.id).where(UserRow.email_key == key)) is not None:
            raise Taken("email")
    raise Taken("username")


def find(session: Session, user_id: str) -> User | None:
    row = session.get(UserRow, user_id)
    return _user(row) if row is not None else None


def page(session: Session, after: tuple[int, str] | None, limit: int) -> list[User]:
    """Up to `limit` accounts, oldest first, from the one after (`created_us`, `id`) on."""
    query = select(UserRow).order_by(UserRow.created_us, UserRow.id).limit(limit)
    if after is not None:
        created_us, user_id = after
        later = UserRow.created_us > created_us
        query = query.where(or_(later, and_(UserRow.created_us == created_us, UserRow.id > user_id)))
    return [_user(row) for row in session.scalars(query)]


def hold(session: Session, user_id: str) -> User | None:
    """The account, which no other transaction changes until the transaction ends."""
    row = session.get(UserRow, user_id, with_for_update=True)
    return _user(row) if row is not None else None


def change(session: Session, user_id: str, values: dict[str, Any], now_us: int) -> User:
    """Set columns of an account that is held. Raises IntegrityError when another account has the username."""
    row = session.get_one(UserRow, user_id)
    for name, value in values.items():
        setattr(row, name, value)
    row.version += 1
    row.updated_us = now_us
    session.flush()
    return _user(row)


def set_post_count(session: Session, user_id: str, count: int, version: int, now_us: int) -> bool | None:
    """Set the count unless a later one has been set: versions come from posts and only grow.

    True when set, False when it came late, None when there is no such account.
    """
    newer = (UserRow.id == user_id, UserRow.post_count_version < version)
    values = {
        "post_count": count,
        "post_count_version": version,
        "version": UserRow.version + 1,
        "updated_us": now_us,
    }
    if write(session, update(UserRow).where(*newer).values(**values)):
        return True
    exists = session.scalar(select(UserRow.id).where(UserRow.id == user_id))
    return False if exists is not None else None


def remove(session: Session, user_id: str) -> None:
    session.execute(delete(UserRow).where(UserRow.id == user_id))
