"""Accounts in the database. Each function works in the transaction of the session it is given.

Times are Unix microseconds, so that a cursor can hold one exactly.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Index, String, and_, delete, func, or_, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from services.kit.db.portable import insert_new, write
from services.users.domain import User, usernames


class Base(DeclarativeBase):
    pass


class UserRow(Base):
    """One account. `post_count` is how many posts in `authored` are there and the account's; `shown` what of its profile others
    see, by commas."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    email: Mapped[str] = mapped_column(String(254))
    email_key: Mapped[str] = mapped_column(String(254), unique=True)
    username: Mapped[str] = mapped_column(String(30), unique=True)
    first_name: Mapped[str] = mapped_column(String(100))
    last_name: Mapped[str] = mapped_column(String(100))
    post_count: Mapped[int] = mapped_column(BigInteger, default=0)
    shown: Mapped[str] = mapped_column(String(100), default="")
    version: Mapped[int] = mapped_column(BigInteger, default=1)
    created_us: Mapped[int] = mapped_column(BigInteger)
    updated_us: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_users_created", "created_us", "id"),)


class AuthoredRow(Base):
    """One post that has been published, and whose. From `gone_us` on it is deleted: kept for a publication that comes late."""

    __tablename__ = "authored"

    post_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    author_id: Mapped[str] = mapped_column(String(64), index=True)
    gone_us: Mapped[int | None] = mapped_column(BigInteger, index=True)


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
        shown=tuple(filter(None, row.shown.split(","))),
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
            first_name=new.first_name, last_name=new.last_name, shown="", version=1,
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


def find_all(session: Session, ids: Collection[str]) -> dict[str, User]:
    """Those of the accounts that there are, by their ids."""
    rows = session.scalars(select(UserRow).where(UserRow.id.in_(ids)))
    return {row.id: _user(row) for row in rows}


def find_by_username(session: Session, names: Collection[str]) -> dict[str, str]:
    """Username → id, of those that there are."""
    rows = session.execute(select(UserRow.username, UserRow.id).where(UserRow.username.in_(names)))
    return {row.username: row.id for row in rows}


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


def post_published(session: Session, post_id: str, author_id: str, now_us: int) -> None:
    """Count it, once however often this comes, and never after it was deleted."""
    if insert_new(session, AuthoredRow, post_id=post_id, author_id=author_id, gone_us=None):
        _count(session, author_id, UserRow.post_count + 1, now_us)


def post_deleted(session: Session, post_id: str, author_id: str, now_us: int) -> None:
    """Count it no more, whether its publication came before this or will come after."""
    counted = (AuthoredRow.post_id == post_id, AuthoredRow.gone_us.is_(None))
    if write(session, update(AuthoredRow).where(*counted).values(gone_us=now_us)):
        _count(session, author_id, UserRow.post_count - 1, now_us)
    else:
        insert_new(session, AuthoredRow, post_id=post_id, author_id=author_id, gone_us=now_us)


def recount(session: Session, user_id: str, now_us: int) -> bool:
    """Count an account's posts anew; whether that made a difference."""
    row = session.get(UserRow, user_id, with_for_update=True)
    mine = (AuthoredRow.author_id == user_id, AuthoredRow.gone_us.is_(None))
    count = session.scalar(select(func.count()).where(*mine)) or 0
    if row is None or row.post_count == count:
        return False
    _count(session, user_id, count, now_us)
    return True


def _count(session: Session, user_id: str, count: Any, now_us: int) -> None:
    values = {"post_count": count, "version": UserRow.version + 1, "updated_us": now_us}
    write(session, update(UserRow).where(UserRow.id == user_id).values(**values))


def forget_deleted_posts(session: Session, before_us: int) -> None:
    """Those that were deleted longer ago than a publication can be late."""
    write(session, delete(AuthoredRow).where(AuthoredRow.gone_us < before_us))


def authored(session: Session, after: str, limit: int) -> list[tuple[str, str]]:
    """(post, author) of posts that are there, by post, from the one after `after` on."""
    query = select(AuthoredRow.post_id, AuthoredRow.author_id).where(
        AuthoredRow.post_id > after, AuthoredRow.gone_us.is_(None)
    )
    rows = session.execute(query.order_by(AuthoredRow.post_id).limit(limit))
    return [(row.post_id, row.author_id) for row in rows]


def remove(session: Session, user_id: str) -> None:
    session.execute(delete(UserRow).where(UserRow.id == user_id))
