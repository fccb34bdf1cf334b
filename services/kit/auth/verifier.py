"""Who is asking: verification of access tokens, and the scopes that a view needs.

Tokens are JWTs, RS256 and nothing else, signed by a key of auth's key set (JWKS). They are read from the
`Authorization` header alone: what the edge says in `X-Auth-*` is for logs, not for decisions.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import jwt
import structlog
from flask import request

from services.kit.auth.jwks import FIRST_PATIENCE_S, KeySet, KeysUnavailable
from services.kit.auth.revocations import Revocations
from services.kit.web.context import current, kit
from services.kit.web.problems import Problem, busy

log = structlog.get_logger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

# One token, three base64url parts. Two Authorization headers arrive joined by a comma and do not match.
BEARER = re.compile(r"bearer +([a-z0-9_-]+\.[a-z0-9_-]+\.[a-z0-9_-]+)", re.ASCII | re.IGNORECASE)
MAX_TOKEN_LENGTH = 8192
REMEMBERED = 2048
_MARK = "__kit_scopes__"


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


def _challenge(detail: str, error: str | None = None) -> Problem:
    value = f'Bearer realm="breakwater"{f", error={chr(34)}{error}{chr(34)}" if error else ""}'
    return Problem(401, detail=detail, headers={"WWW-Authenticate": value})


def authenticate() -> Identity:
    """Verify the request's token and note who is calling. Raises Problem 401, or 503 without any key to check with."""
    given = request.environ.get("HTTP_AUTHORIZATION")
    outcomes = kit().metrics.tokens
    if not given:
        outcomes.labels("missing").inc()
        raise _challenge("A bearer token is needed.")
    match = BEARER.fullmatch(given)
    if match is None:
        outcomes.labels("malformed").inc()
        raise _challenge("The Authorization header does not hold one bearer token.", "invalid_request")
    try:
        identity = kit().tokens.verify(match[1], current().remaining_s())
    except InvalidToken as error:
        outcomes.labels("invalid").inc()
        raise _challenge(str(error), "invalid_token") from None
    except KeysUnavailable:
        outcomes.labels("no_keys").inc()
        raise busy("Tokens cannot be checked at the moment.") from None
    outcomes.labels("valid").inc()
    caller = current()
    caller.subject, caller.scopes, caller.by_key = identity.subject, identity.scopes, identity.by_key
    return identity


@dataclass(frozen=True, slots=True)
class Need:
    """What a view asks of a token: one of `scopes`, and to be of one of `services`; empty stands for any."""

    scopes: frozenset[str]
    services: frozenset[str] = frozenset()


def authorize(need: Need) -> None:
    """Let the request through if its token has what is needed. Raises Problem 401, 403."""
    caller = current()
    if caller.subject is None:
        authenticate()
    if need.scopes and caller.scopes.isdisjoint(need.scopes):
        wanted = " ".join(sorted(need.scopes))
        raise Problem(
            403,
            detail=f"This needs one of the scopes: {wanted}.",
            headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{wanted}"'},
        )
    if need.services and caller.subject not in {f"service:{name}" for name in need.services}:
        raise Problem(403, detail=f"This is for {' and '.join(sorted(need.services))} only.")


def require_scope(*scopes: str) -> Callable[[F], F]:
    """Decorator of a view: the caller's token must have any of the scopes; without arguments, any valid token will do.

    Below the route decorator. `current().subject` and `.scopes` are set when the view runs. The check comes before
    the validation of the request, so that a stranger learns nothing about its shape.
    """
    return _guard(Need(frozenset(scopes)))


def require_service(*names: str) -> Callable[[F], F]:
    """As `require_scope`, for what only these services may ask for, each with a token of its own."""
    return _guard(Need(frozenset({"service"}), frozenset(names)))


def _guard(need: Need) -> Callable[[F], F]:
    def decorate(view: F) -> F:
        @wraps(view)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            authorize(need)
            return view(*args, **kwargs)

        setattr(guarded, _MARK, need)
        return guarded  # type: ignore[return-value]

    return decorate


def need_of(view: Callable[..., Any]) -> Need | None:
    """What `require_scope` or `require_service` asks for on this view, or None."""
    found: Need | None = getattr(view, _MARK, None)
    return found
