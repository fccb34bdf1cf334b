"""Browser sessions: kept in Redis, known to the browser by a random cookie, known to Redis by its SHA-256 only.

What is kept is sealed with auth's key, and names its own key: all services share the Redis, so that each of them could write
a session for any account, or move one, but none that opens.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

import structlog
from cryptography.fernet import InvalidToken, MultiFernet

from services.auth.grants import digest

log = structlog.get_logger(__name__)

COOKIE = "bw_session"
# Only these endpoints take the cookie; everything else takes the short token that it is exchanged for.
COOKIE_PATH = "/api/auth/session"


@dataclass(frozen=True, slots=True)
class Session:
    """Whose it is, and when it was opened (Unix time in seconds)."""

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

    def find(self, token: str) -> Session | None:
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
        return Session(account_id, opened_at)

    def close(self, token: str) -> None:
        self.redis.delete(_key(token))


def _key(token: str) -> str:
    return f"auth:session:{digest(token)}"
