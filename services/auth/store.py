"""What auth keeps in its database: accounts, login tallies, and access tokens that end before they expire. Each function with a
session works in its transaction.

Portable types only; times are Unix seconds, so that SQLite and PostgreSQL keep the same value.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    delete,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from services.auth.domain import email_key, narrow
from services.auth.lockout import SOURCE, Standing, Tally, attempted, succeeded, wait_s
from services.kit.db.portable import insert_new, write
from services.kit.db.session import Database

# Longest window of any rule: an older tally counts for nothing.
TALLY_KEPT_S = 86400.0


class Base(DeclarativeBase):
    pass


class Account(Base):
    """One set of credentials. `active` is false until users has the account too; until then it cannot log in.

    `claim` and `claimed_until` say which registration is opening it: a second one waits its turn (409), and takes over
    what a dead one left behind.
    """

    __tablename__ = "accounts"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    email: Mapped[str] = mapped_column(String(254))
    email_key: Mapped[str] = mapped_column(String(254), unique=True)
    password_hash: Mapped[str] = mapped_column(String(255))
    scopes: Mapped[str] = mapped_column(String(100), default="user")
    active: Mapped[bool] = mapped_column(Boolean, default=False)
    claim: Mapped[str] = mapped_column(String(32), default="")
    claimed_until: Mapped[float] = mapped_column(Float, default=0.0)
    created_at: Mapped[float] = mapped_column(Float)


class TallyRow(Base):
    """Failures under one key (see `services.auth.lockout`). The key is a hash: no mistyped address is kept."""

    __tablename__ = "login_tallies"

    key: Mapped[str] = mapped_column(String(66), primary_key=True)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    last_at: Mapped[float] = mapped_column(Float, default=0.0)
    known_until: Mapped[float] = mapped_column(Float, default=0.0)

    __table_args__ = (Index("ix_login_tallies_last_at", "last_at"),)


class RefreshFamily(Base):
    """All refresh tokens that descend from one login. Revoking it ends every one of them."""

    __tablename__ = "refresh_families"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[float] = mapped_column(Float, index=True)
    revoked_at: Mapped[float | None] = mapped_column(Float)
    revoked_for: Mapped[str | None] = mapped_column(String(20))
    rotations: Mapped[int] = mapped_column(Integer, default=0)


class RefreshToken(Base):
    """One refresh token, by its SHA-256. `used_at` is set once, by the one caller that may exchange it."""

    __tablename__ = "refresh_tokens"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    family_id: Mapped[str] = mapped_column(ForeignKey("refresh_families.id", ondelete="CASCADE"), index=True)
    used_at: Mapped[float | None] = mapped_column(Float)


class ApiKey(Base):
    """One API key, by its SHA-256. `prefix` is what its owner may see of it, and what finds it."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    account_id: Mapped[str] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(16), index=True)
    key_hash: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float)
    last_used_at: Mapped[float | None] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)


class Revocation(Base):
    """What was issued to `subject` at `before` or earlier is void. From `until` on its access tokens have expired anyway.

    No foreign key: most of these accounts are gone.
    """

    __tablename__ = "revocations"

    subject: Mapped[str] = mapped_column(String(64), primary_key=True)
    before: Mapped[int] = mapped_column(BigInteger)
    until: Mapped[int] = mapped_column(BigInteger, index=True)


class SigningKey(Base):
    """One RSA key. `generation` is unique: of two instances that make the next key at once, one wins and both use it."""

    __tablename__ = "signing_keys"

    kid: Mapped[str] = mapped_column(String(43), primary_key=True)
    generation: Mapped[int] = mapped_column(Integer, unique=True)
    active_from: Mapped[float] = mapped_column(Float)
    private_encrypted: Mapped[str] = mapped_column(Text)
    public_jwk: Mapped[str] = mapped_column(Text)


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


# -- revocations: of accounts that are gone, or were logged out everywhere
#
# A token is void when its account has a revocation and it was issued at `before` or earlier. Both are whole seconds, as `iat` is:
# a token that is issued right after a revocation is dated into the next second (`issue_time`), and lives.


def revoke(session: Session, subject: str, now: float, longest_s: float) -> None:
    """Void every token and browser session that `subject` has; no token lives for more than `longest_s`.

    Call it last in the transaction: what is issued beside it, and sees nothing of it yet, is then older.
    """
    # A second revocation in one second voids what was issued after the first, too.
    before = issue_time(session, subject, now)
    values = {"before": before, "until": int(now + longest_s) + 1}
    if not insert_new(session, Revocation, subject=subject, **values):
        session.execute(update(Revocation).where(Revocation.subject == subject).values(**values))


def revocations(db: Database, now: float) -> dict[str, Any]:
    """What verifiers of tokens must know: the revocations some of whose tokens have not expired."""
    query = select(Revocation).where(Revocation.until > now).order_by(Revocation.subject)
    with db.session(read_only=True) as session:
        rows = session.scalars(query)
        entries = [{"subject": row.subject, "before": row.before, "until": row.until} for row in rows]
    return {"revocations": entries}


def issue_time(session: Session, subject: str, now: float) -> int:
    """The `iat` of a token that is made for `subject` now: after its revocation, if there has been one."""
    return max(int(now), revoked_before(session, subject) + 1)


def revoked_before(session: Session, subject: str) -> int:
    """What was issued to `subject` up to then is void; 0 when nothing has been revoked."""
    before = session.scalar(select(Revocation.before).where(Revocation.subject == subject))
    return before or 0


def forget_old_revocations(session: Session, now: float, kept_s: float) -> int:
    """Delete revocations that nothing issued lives long enough to meet. Returns how many."""
    return write(session, delete(Revocation).where(Revocation.before < now - kept_s))
