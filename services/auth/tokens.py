"""Making access tokens: RS256, short-lived, in the shape that the edge and the kit verify."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jwt

from discovery.clock import SYSTEM_CLOCK, Clock
from services.auth.keyring import KeyRing


@dataclass(frozen=True, slots=True)
class Access:
    """An access token and its life in seconds, as OAuth 2 answers them."""

    access_token: str
    expires_in: int
    scope: str

    def body(self) -> dict[str, Any]:
        return {
            "access_token": self.access_token,
            "token_type": "Bearer",
            "expires_in": self.expires_in,
            "scope": self.scope,
        }


@dataclass(frozen=True, slots=True)
class Minter:
    """Signs tokens for `issuer` and `audience` with the key that the ring names."""

    ring: KeyRing
    issuer: str
    audience: str
    clock: Clock = SYSTEM_CLOCK

    def mint(
        self, subject: str, scopes: Iterable[str], ttl_s: int, issued_at: int | None = None, **claims: str
    ) -> Access:
        """A token for `subject` (a user id or `service:<name>`), good for `ttl_s` from now; `issued_at` is its `iat`, where
        that is not now. `claims` are added to the registered ones."""
        kid, private = self.ring.signing_key()
        now = int(self.clock.time())
        scope = " ".join(scopes)
        payload = {
            **claims,
            "iss": self.issuer,
            "aud": self.audience,
            "sub": subject,
            "scope": scope,
            "iat": now if issued_at is None else issued_at,
            "exp": now + ttl_s,
            "jti": uuid.uuid4().hex,
        }
        return Access(jwt.encode(payload, private, algorithm="RS256", headers={"kid": kid}), ttl_s, scope)


class OwnToken:
    """auth's own token for calls to other services: minted here, since it need not ask itself. Thread-safe."""

    def __init__(self, minter: Minter, ttl_s: int) -> None:
        self._minter = minter
        self._ttl_s = ttl_s
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0

    def __call__(self, within_s: float = 0.0) -> str:
        with self._lock:
            now = self._minter.clock.monotonic()
            if now >= self._renew_at:
                self._token = self._minter.mint("service:auth", ("service",), self._ttl_s).access_token
                self._renew_at = now + self._ttl_s / 2
            return self._token
