"""What is exchanged for an access token: refresh tokens, API keys, the secrets of services, and browser sessions.

All are long random secrets of which only the SHA-256 is kept: unlike a password they cannot be guessed, so a fast hash will do.
Each function with a session of the database works in its transaction.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import structlog
from cryptography.fernet import InvalidToken, MultiFernet
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from services.auth.store import Account, ApiKey, Identity, RefreshFamily, RefreshToken, hold, identity
from services.kit.db.portable import write

log = structlog.get_logger(__name__)

API_KEY_PREFIX_CHARS = 11  # `sk-` and 8 more: enough to tell keys apart, 48 bits of 256
MAX_API_KEYS = 50
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
NOBODY = "0" * 64
COOKIE = "bw_session"
# Only these endpoints take the cookie; everything else takes the short token that it is exchanged for.
COOKIE_PATH = "/api/auth/session"


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
    """The successor of a refresh token, and its owner."""

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


# -- secrets of services: `AUTH_CLIENTS_FILE`, JSON {service name: SHA-256 of its secret in hex}


class ClientsError(Exception):
    """The file is not JSON of the documented shape."""


def parse_clients(text: str) -> dict[str, str]:
    """{name: hash}, every entry checked. Raises ClientsError naming the first bad one, never its value."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ClientsError(f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ClientsError("not a JSON object")
    for name, hashed in raw.items():
        if not _NAME.fullmatch(name) or not isinstance(hashed, str) or not _SHA256.fullmatch(hashed):
            raise ClientsError(f"{name!r}: wants a service name and 64 hexadecimal digits")
    return raw


class Clients:
    """Follows the file: a service that is added gets in without a restart, one taken out stays out. Thread-safe.

    A file that has become unreadable or malformed leaves the last good state, and says so once per change.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._clients: dict[str, str] = {}

    def verify(self, name: str, secret: str) -> bool:
        """Whether this is the service's secret. An unknown name takes as long as a wrong secret."""
        expected = self._current().get(name)
        return hmac.compare_digest(expected or NOBODY, digest(secret)) and expected is not None

    def _current(self) -> dict[str, str]:
        if self._path is None:
            return self._clients
        with self._lock:
            try:
                stat = self._path.stat()
                seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
                if seen != self._seen:
                    self._seen = seen
                    self._clients = parse_clients(self._path.read_text())
                    log.info("service clients read", clients=len(self._clients))
            except (OSError, ClientsError) as error:
                log.warning("service clients not read, the last ones stand", reason=str(error))
            return self._clients


# -- browser sessions: kept in Redis, known to the browser by a random cookie
#
# What is kept is sealed with auth's key, and names its own key: all services share the Redis, so that each of them could write
# a session for any account, or move one, but none that opens.


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """Its owner, and when it was opened (Unix time in seconds)."""

    account_id: str
    opened_at: int


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sessions in `redis` (decoded or not), each for `ttl_s` from its login, sealed with `seal`. Errors of Redis go through
    to the caller."""

    redis: Any
    ttl_s: int
    seal: MultiFernet

    def open(self, account_id: str, opened_at: int, replacing: str | None) -> str:
        """A new session and the end of the one that the browser came with: an id that was planted there
        before the login is worth nothing after it."""
        token = secrets.token_urlsafe(32)
        pipe = self.redis.pipeline(transaction=True)
        if replacing:
            pipe.delete(_key(replacing))
        sealed = self.seal.encrypt_at_time(f"{_key(token)} {account_id}".encode(), opened_at)
        pipe.set(_key(token), sealed, ex=self.ttl_s)
        pipe.execute()
        return token

    def find(self, token: str) -> BrowserSession | None:
        """The session of this text; None when it has ended or never was."""
        value = self.redis.get(_key(token))
        if value is None:
            return None
        try:
            key, _, account_id = self.seal.decrypt(value, ttl=self.ttl_s).decode().partition(" ")
            opened_at = self.seal.extract_timestamp(value)
        except InvalidToken:
            key = ""
        if key != _key(token):
            log.warning("session not sealed by auth, refused")
            return None
        return BrowserSession(account_id, opened_at)

    def close(self, token: str) -> None:
        self.redis.delete(_key(token))


def _key(token: str) -> str:
    return f"auth:session:{digest(token)}"
