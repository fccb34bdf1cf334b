"""Refresh tokens and API keys: long random secrets, of which only the SHA-256 is kept.

Unlike a password they cannot be guessed, so a fast hash will do. Each function works in the transaction of its session.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from services.auth.models import Account, ApiKey, RefreshFamily, RefreshToken
from services.auth.store import Identity, hold, identity
from services.kit.db.portable import write

API_KEY_PREFIX_CHARS = 11  # `sk-` and 8 more: enough to tell keys apart, 48 bits of 256
MAX_API_KEYS = 50


def digest(secret: str) -> str:
    """SHA-256 in hex; a lone surrogate, which no secret of ours has, hashes to something that fits nothing."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


class Refusal(Enum):
    """Why a refresh token was not exchanged."""

    UNKNOWN = "unknown"
    EXPIRED = "expired"
    REVOKED = "revoked"
    REUSED = "reused"


@dataclass(frozen=True, slots=True)
class Rotation:
    """The successor of a refresh token, and whose it is."""

    token: str
    owner: Identity


def open_family(session: Session, account_id: str, now: float, ttl_s: float) -> str:
    """The first refresh token of a login. The whole family ends `ttl_s` from now, however often it is rotated.

    Raises AccountGone.
    """
    hold(session, account_id)
    family_id, token = uuid.uuid4().hex, secrets.token_urlsafe(32)
    session.add(RefreshFamily(id=family_id, account_id=account_id, expires_at=now + ttl_s, rotations=0))
    session.flush()
    session.add(RefreshToken(token_hash=digest(token), family_id=family_id))
    return token


def rotate_refresh(session: Session, token: str, now: float) -> Rotation | Refusal:
    """Exchange a refresh token for its successor, once.

    A token that comes a second time has been copied, and it is unknown which of the two callers is the owner:
    the family is revoked. The caller must commit in every case, or the revocation is lost.
    """
    hashed = digest(token)
    family_id = session.scalar(select(RefreshToken.family_id).where(RefreshToken.token_hash == hashed))
    if family_id is None:
        return Refusal.UNKNOWN
    # The family's row is the lock: rotations and a revocation of one family come one after the other.
    live = (RefreshFamily.id == family_id, RefreshFamily.revoked_at.is_(None), RefreshFamily.expires_at > now)
    counted = update(RefreshFamily).where(*live).values(rotations=RefreshFamily.rotations + 1)
    if not write(session, counted):
        revoked = session.scalar(select(RefreshFamily.revoked_at).where(RefreshFamily.id == family_id))
        return Refusal.REVOKED if revoked is not None else Refusal.EXPIRED
    unused = (RefreshToken.token_hash == hashed, RefreshToken.used_at.is_(None))
    if not write(session, update(RefreshToken).where(*unused).values(used_at=now)):
        revoke_family(session, family_id, now, "reuse")
        return Refusal.REUSED
    account = session.scalar(
        select(Account).join(RefreshFamily).where(RefreshFamily.id == family_id, Account.active)
    )
    if account is None:
        return Refusal.REVOKED
    successor = secrets.token_urlsafe(32)
    session.add(RefreshToken(token_hash=digest(successor), family_id=family_id))
    return Rotation(successor, identity(account))


def revoke_family(session: Session, family_id: str, now: float, reason: str) -> None:
    live = (RefreshFamily.id == family_id, RefreshFamily.revoked_at.is_(None))
    session.execute(update(RefreshFamily).where(*live).values(revoked_at=now, revoked_for=reason))


def log_out(session: Session, token: str, now: float) -> None:
    """Revoke the family of a refresh token, used or not. An unknown token is no error."""
    family_id = session.scalar(select(RefreshToken.family_id).where(RefreshToken.token_hash == digest(token)))
    if family_id is not None:
        revoke_family(session, family_id, now, "logout")


def revoke_families(session: Session, account_id: str, now: float) -> None:
    """End every login of an account."""
    live = (RefreshFamily.account_id == account_id, RefreshFamily.revoked_at.is_(None))
    session.execute(update(RefreshFamily).where(*live).values(revoked_at=now, revoked_for="everywhere"))


def forget_expired_families(session: Session, now: float) -> int:
    """Delete families that have ended by themselves, with their tokens. Returns how many."""
    expired = select(RefreshFamily.id).where(RefreshFamily.expires_at < now)
    session.execute(delete(RefreshToken).where(RefreshToken.family_id.in_(expired)))
    return write(session, delete(RefreshFamily).where(RefreshFamily.expires_at < now))


def create_api_key(
    session: Session, account_id: str, name: str, scopes: Sequence[str], now: float, ttl_s: float | None
) -> tuple[ApiKey, str] | None:
    """A new key and its text, which is not kept anywhere; None when the account holds MAX_API_KEYS already.

    Raises AccountGone.
    """
    # Two requests at once cannot both be the fiftieth.
    hold(session, account_id)
    live = (ApiKey.account_id == account_id, ApiKey.revoked_at.is_(None))
    if (session.scalar(select(func.count()).select_from(ApiKey).where(*live)) or 0) >= MAX_API_KEYS:
        return None
    text = f"sk-{secrets.token_urlsafe(32)}"
    row = ApiKey(
        id=uuid.uuid4().hex,
        account_id=account_id,
        name=name,
        prefix=text[:API_KEY_PREFIX_CHARS],
        key_hash=digest(text),
        scopes=" ".join(scopes),
        created_at=now,
        expires_at=None if ttl_s is None else now + ttl_s,
    )
    session.add(row)
    session.flush()
    return row, text


def list_api_keys(session: Session, account_id: str) -> list[ApiKey]:
    """The account's keys that are not revoked, oldest first."""
    mine = (ApiKey.account_id == account_id, ApiKey.revoked_at.is_(None))
    return list(session.scalars(select(ApiKey).where(*mine).order_by(ApiKey.created_at, ApiKey.id)))


def revoke_api_key(session: Session, account_id: str, key_id: str, now: float) -> bool:
    """Revoke one key of the account. False when the account has no such key."""
    mine = (ApiKey.id == key_id, ApiKey.account_id == account_id, ApiKey.revoked_at.is_(None))
    return bool(write(session, update(ApiKey).where(*mine).values(revoked_at=now)))


def use_api_key(session: Session, text: str, now: float) -> tuple[ApiKey, Identity] | None:
    """The key of this text and its owner, when both may act."""
    hashed = digest(text)
    candidates = session.execute(
        select(ApiKey, Account)
        .join(Account)
        .where(ApiKey.prefix == text[:API_KEY_PREFIX_CHARS], ApiKey.revoked_at.is_(None), Account.active)
    ).all()
    for key, account in candidates:
        if hmac.compare_digest(key.key_hash, hashed) and (key.expires_at is None or key.expires_at > now):
            key.last_used_at = now
            return key, identity(account)
    return None
