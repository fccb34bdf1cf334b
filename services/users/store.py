"""Accounts in the database. Each function works in the transaction of the session it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.orm import Session

from services.kit.db.upsert import insert_new
from services.users.domain import REMOVAL_FIRST_S, User, removal_wait_s, usernames
from services.users.models import Removal, UserRow


class Taken(Exception):
    """A unique value is somebody else's; `field` says which: `email` or `username`."""

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


def change(
    session: Session, user_id: str, values: dict[str, Any], now_us: int, expected_version: int | None
) -> User | None:
    """Set columns of one account. None when it is not there, or no longer at `expected_version`.

    Raises Taken("username") when somebody else has the name.
    """
    wanted = [UserRow.id == user_id]
    if expected_version is not None:
        wanted.append(UserRow.version == expected_version)
    # A write first: from here on nobody else changes the row, and on SQLite nothing at all.
    touched = session.execute(
        update(UserRow).where(*wanted).values(version=UserRow.version + 1, updated_us=now_us)
    )
    if not touched.rowcount:
        return None
    username = values.get("username")
    if username is not None:
        _claim_username(session, user_id, username)
    if values:
        session.execute(update(UserRow).where(UserRow.id == user_id).values(**values))
    return find(session, user_id)


def _claim_username(session: Session, user_id: str, username: str) -> None:
    holder = session.scalar(select(UserRow.id).where(UserRow.username == username))
    if holder is not None and holder != user_id:
        raise Taken("username")


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
    if session.execute(update(UserRow).where(*newer).values(**values)).rowcount:
        return True
    exists = session.scalar(select(UserRow.id).where(UserRow.id == user_id))
    return False if exists is not None else None


def remove(session: Session, user_id: str, now: float, expected_version: int | None) -> bool:
    """Remove an account, and note in the same transaction that auth has to be told. False when there was nothing to remove.

    The request itself tells auth right after the commit; until then the note is not due.
    """
    wanted = [UserRow.id == user_id]
    if expected_version is not None:
        wanted.append(UserRow.version == expected_version)
    if not session.execute(delete(UserRow).where(*wanted)).rowcount:
        return False
    insert_new(session, Removal, user_id=user_id, attempts=0, next_at=now + REMOVAL_FIRST_S)
    return True


def due_removals(session: Session, now: float, limit: int) -> list[tuple[str, int]]:
    """(id, failed attempts) of removals that auth has still to hear of, the longest overdue first."""
    query = select(Removal.user_id, Removal.attempts).where(Removal.next_at <= now)
    return [(row[0], row[1]) for row in session.execute(query.order_by(Removal.next_at).limit(limit))]


def claim_removal(session: Session, user_id: str, attempts: int, now: float) -> bool:
    """Move a due removal to its next time: while this caller works on it, no other instance does.

    A claim that is never settled (the call failed, the process died) comes due again by itself.
    """
    mine = (Removal.user_id == user_id, Removal.attempts == attempts, Removal.next_at <= now)
    later = {"attempts": attempts + 1, "next_at": now + removal_wait_s(attempts)}
    return bool(session.execute(update(Removal).where(*mine).values(**later)).rowcount)


def settle_removal(session: Session, user_id: str) -> None:
    """Auth has removed the credentials."""
    session.execute(delete(Removal).where(Removal.user_id == user_id))
