"""What a view asks of its caller's token: `require_scope`, `require_service`.

Tokens are read from the `Authorization` header alone: what the edge says in `X-Auth-*` is for logs, not for decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

from flask import request

from services.kit.auth.jwks import KeysUnavailable
from services.kit.auth.verifier import BEARER, Identity, InvalidToken
from services.kit.container import kit
from services.kit.web.context import current
from services.kit.web.problems import Problem, busy

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__kit_needs__"


def _challenge(detail: str, error: str | None = None) -> Problem:
    value = f'Bearer realm="breakwater"{f", error={chr(34)}{error}{chr(34)}" if error else ""}'
    return Problem(401, detail=detail, headers={"WWW-Authenticate": value})


def authenticate() -> Identity:
    """Verify the request's token and note the caller. Raises Problem 401, or 503 without any key to check with."""
    return identify(request.environ.get("HTTP_AUTHORIZATION"))


def identify(given: str | None) -> Identity:
    """The same with what an `Authorization` header, or its like, holds."""
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
