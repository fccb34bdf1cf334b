"""Accounts and login tallies in the database. Each function works in the transaction of the session it is given."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from services.auth.domain import email_key, narrow
from services.auth.lockout import SOURCE, Standing, Tally, attempted, succeeded, wait_s
from services.auth.models import Account, TallyRow
from services.kit.db.portable import insert_new, write

# Longest window of any rule: an older tally counts for nothing.
TALLY_KEPT_S = 86400.0


@dataclass(frozen=True, slots=True)
class Identity:
    """An account that may act: its id (the `sub` of its tokens), e-mail and scopes."""

    id: str
    email: str
    scopes: tuple[str, ...]


class AccountGone(Exception):
    """The account has been deleted, or is not open yet."""


def identity(row: Account) -> Identity:
    return Identity(row.id, row.email, narrow(row.scopes.split(), row.scopes.split()))


def find_active(session: Session, account_id: str) -> Identity | None:
    """The account of this id, when it may act."""
    row = session.get(Account, account_id)
    return identity(row) if row is not None and row.active else None


def hold(session: Session, account_id: str) -> Identity:
    """The account of this id, which stays as it is until the transaction ends. Raises AccountGone."""
    row = session.scalar(select(Account).where(Account.id == account_id, Account.active).with_for_update())
    if row is None:
        raise AccountGone
    return identity(row)


def credentials(session: Session, email: str) -> tuple[Identity, str] | None:
    """The active account of this address and its password hash."""
    row = session.scalar(select(Account).where(Account.email_key == email_key(email), Account.active))
    return (identity(row), row.password_hash) if row is not None else None


def set_password_hash(session: Session, account_id: str, password_hash: str) -> None:
    session.execute(update(Account).where(Account.id == account_id).values(password_hash=password_hash))


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to open one account: its id, and the token that proves the claim at the end."""

    account_id: str
    token: str


def claim(session: Session, email: str, password_hash: str, now: float, lease_s: float) -> Claim | None:
    """Start opening an account, or None when the address is taken, or being taken by another right now.

    The account stays inactive until `activate`. Left behind by a crash it can be claimed again once the lease is over,
    under the same id, so that users, which may have heard of it, finds the same account again.
    """
    mine = Claim(uuid.uuid4().hex, uuid.uuid4().hex)
    fresh = {"password_hash": password_hash, "claim": mine.token, "claimed_until": now + lease_s}
    key = email_key(email)
    if insert_new(
        session, Account, id=mine.account_id, email=email, email_key=key,
        scopes="user", active=False, created_at=now, **fresh,
    ):  # fmt: skip
        return mine
    dormant = (Account.email_key == key, Account.active.is_(False), Account.claimed_until <= now)
    if not write(session, update(Account).where(*dormant).values(email=email, **fresh)):
        return None
    account_id = session.scalar(select(Account.id).where(Account.email_key == key))
    return Claim(account_id, mine.token) if account_id else None


def activate(session: Session, held: Claim) -> bool:
    """End a claim well: the account may log in. False when the claim ran out and another registration took it."""
    mine = (Account.id == held.account_id, Account.claim == held.token, Account.active.is_(False))
    return bool(write(session, update(Account).where(*mine).values(active=True, claim="")))


def release(session: Session, held: Claim) -> None:
    """End a claim badly: the next registration of this address may take it over at once."""
    mine = (Account.id == held.account_id, Account.claim == held.token, Account.active.is_(False))
    session.execute(update(Account).where(*mine).values(claimed_until=0.0))


def remove(session: Session, account_id: str) -> bool:
    """Remove credentials and all that hangs on them: refresh tokens and API keys. False when there were none."""
    return bool(write(session, delete(Account).where(Account.id == account_id)))


def grant(session: Session, email: str, scope: str) -> Identity | None:
    """Give an active account one more scope, or None when there is no such account."""
    row = session.scalar(select(Account).where(Account.email_key == email_key(email), Account.active))
    if row is None:
        return None
    held = row.scopes.split()
    row.scopes = " ".join(narrow([*held, scope], [*held, scope]))
    session.flush()
    return identity(row)


@dataclass(frozen=True, slots=True)
class _Keys:
    account: str
    pair: str
    source: str


def _keys(email: str, source: str) -> _Keys:
    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    key = email_key(email)
    return _Keys(f"a:{digest(key)}", f"p:{digest(f'{key}|{source}')}", f"s:{digest(source)}")


def _standing(session: Session, keys: _Keys) -> Standing:
    """Lock and read the three tallies, always in the same order."""
    ordered = (keys.account, keys.pair, keys.source)
    for key in ordered:
        insert_new(session, TallyRow, key=key)
    rows = {
        row.key: row
        for row in session.scalars(
            select(TallyRow).where(TallyRow.key.in_(ordered)).order_by(TallyRow.key).with_for_update()
        )
    }
    pair = rows[keys.pair]
    return Standing(
        pair=Tally(pair.failures, pair.last_at),
        account=Tally(rows[keys.account].failures, rows[keys.account].last_at),
        source=Tally(rows[keys.source].failures, rows[keys.source].last_at),
        known_until=pair.known_until,
    )


def _save(session: Session, keys: _Keys, standing: Standing) -> None:
    for key, tally in ((keys.account, standing.account), (keys.source, standing.source)):
        session.execute(
            update(TallyRow).where(TallyRow.key == key).values(failures=tally.failures, last_at=tally.last_at)
        )
    pair = standing.pair
    session.execute(
        update(TallyRow)
        .where(TallyRow.key == keys.pair)
        .values(failures=pair.failures, last_at=pair.last_at, known_until=standing.known_until)
    )


def begin_attempt(session: Session, email: str, source: str, now: float) -> float:
    """Count an attempt as failed until it succeeds. Returns 0, or the seconds to wait: then nothing was counted."""
    keys = _keys(email, source)
    standing = _standing(session, keys)
    wait = wait_s(standing, now)
    if not wait:
        _save(session, keys, attempted(standing, now))
    return wait


def attempt_succeeded(session: Session, email: str, source: str, now: float) -> None:
    """The password was right, or the account has just been opened: the source is known, its failures are forgiven."""
    keys = _keys(email, source)
    _save(session, keys, succeeded(_standing(session, keys), now))


def forget_old_tallies(session: Session, now: float) -> int:
    """Delete tallies that no rule looks at any more. Returns how many."""
    old = (TallyRow.last_at < now - max(TALLY_KEPT_S, SOURCE.window_s), TallyRow.known_until < now)
    return write(session, delete(TallyRow).where(*old))
