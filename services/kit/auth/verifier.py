"""Verification of access tokens: JWTs, RS256 and nothing else, signed by a key of auth's key set (JWKS)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
import structlog

from services.kit.auth.jwks import FIRST_PATIENCE_S, KeySet
from services.kit.auth.revocations import Revocations

log = structlog.get_logger(__name__)

# One token, three base64url parts. Two Authorization headers arrive joined by a comma and do not match.
BEARER = re.compile(r"bearer +([a-z0-9_-]+\.[a-z0-9_-]+\.[a-z0-9_-]+)", re.ASCII | re.IGNORECASE)
MAX_TOKEN_LENGTH = 8192
REMEMBERED = 2048


class InvalidToken(Exception):
    """The token proves nothing; the text says why, in words fit for the caller."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a verified token says. Times are Unix time in seconds; `by_key`: it was made from an API key."""

    subject: str
    scopes: frozenset[str]
    expires_at: float
    by_key: bool = False
    issued_at: float = 0.0


class TokenVerifier:
    """Verifies tokens against a key set. Safe for threads; remembers tokens that it has verified.

    What is remembered is forgotten when the key set changes; expiry and `revocations` are looked at every time.
    """

    def __init__(
        self,
        keys: KeySet,
        *,
        issuer: str,
        audience: str,
        revocations: Revocations | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._revocations = revocations
        self._issuer = issuer
        self._audience = audience
        self._now = now
        self._verified: dict[str, Identity] = {}
        self._generation = -1

    def verify(self, token: str, within_s: float = FIRST_PATIENCE_S) -> Identity:
        """The identity in a token; a key that is not known yet is waited for `within_s` at most.

        Raises InvalidToken, or KeysUnavailable when there is no key to check with.
        """
        if self._generation != self._keys.generation:
            self._generation, self._verified = self._keys.generation, {}
        verified = self._verified
        identity = verified.get(token)
        if identity is None:
            identity = self._check(token, within_s)
            if len(verified) >= REMEMBERED:
                verified.clear()
            verified[token] = identity
        else:
            self._keys.refresh_soon()
        if identity.expires_at <= self._now():
            verified.pop(token, None)
            raise InvalidToken("The token has expired.")
        if self._revocations is not None and self._revocations.void(identity.subject, identity.issued_at):
            raise InvalidToken("The token has been revoked.")
        return identity

    def prefetch(self, within_s: float) -> bool:
        """Fetch the keys before the first token comes, within `within_s`. Returns whether there are any."""
        return self._keys.prefetch(within_s)

    def _check(self, token: str, within_s: float) -> Identity:
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidToken("The token is too long.")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise InvalidToken("The token is malformed.") from None
        kid = header.get("kid")
        if header.get("alg") != "RS256" or not isinstance(kid, str):
            raise InvalidToken("The token is not signed as it must be.")
        key = self._keys.get(kid, within_s)
        if key is None:
            raise InvalidToken("The token's key is not known.")
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=["RS256"],
                issuer=self._issuer,
                audience=self._audience,
                options={"require": ["iss", "aud", "exp", "sub"], "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            raise InvalidToken("The token has expired.") from None
        except jwt.InvalidTokenError as error:
            log.debug("token refused", reason=str(error))
            raise InvalidToken("The token is not valid.") from None
        except (ValueError, OverflowError, TypeError):
            raise InvalidToken("The token is malformed.") from None
        return _identity(claims, self._audience)


def _identity(claims: Mapping[str, Any], audience: str) -> Identity:
    """Claims of odd types are refused, where PyJWT would convert them (`exp` as a string, `aud` as a list)."""
    expires_at, subject, scope = claims["exp"], claims["sub"], claims.get("scope", "")
    if isinstance(expires_at, bool) or not isinstance(expires_at, int | float) or expires_at != expires_at:
        raise InvalidToken("The token's expiry is not a number.")
    if claims["aud"] != audience or not isinstance(subject, str) or not subject or not isinstance(scope, str):
        raise InvalidToken("The token's claims are malformed.")
    issued_at = claims.get("iat")
    if isinstance(issued_at, bool) or not isinstance(issued_at, int | float) or issued_at != issued_at:
        issued_at = 0.0  # older than any revocation
    return Identity(
        subject, frozenset(scope.split()), float(expires_at), "api_key" in claims, float(issued_at)
    )
