"""The endpoints of auth: logins by e-mail address and password; what is exchanged for a short token (API keys, secrets of
services, browser sessions); and the public keys, and what has been revoked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from flask import Response, jsonify, request

from services.auth import grants, store
from services.auth.domain import narrow
from services.auth.grants import COOKIE, COOKIE_PATH
from services.auth.schemas import (
    AccessToken,
    ApiKeyPath,
    ApiKeysAnswer,
    Jwks,
    Login,
    NewApiKey,
    NewApiKeyShown,
    OpenedAnswer,
    Refresh,
    Register,
    RevocationsAnswer,
    Rotation,
    SessionAnswer,
    TokenPair,
    TokenRequest,
)
from services.auth.service import Auth
from services.auth.store import ApiKey
from services.kit import Problem, ServiceApp, current, require_scope
from services.kit.web.resources import NOTHING, One

DAY_S = 86400.0
# The key set may be cached for a fraction of the time between a key's publication and its first use.
JWKS_MAX_AGE_S = 15

Source = Callable[[], str]


def install(app: ServiceApp, auth: Auth, source: Source) -> None:
    """Add the endpoints. `source` tells the network that the current request came from."""
    _install_logins(app, auth, source)
    _install_logout(app, auth)
    _install_token(app, auth)
    _install_api_keys(app, auth)
    _install_sessions(app, auth, source)
    _install_operations(app, auth)


def _install_logins(app: ServiceApp, auth: Auth, source: Source) -> None:
    @app.post("/api/auth/register", responses={201: OpenedAnswer})
    def register(body: Register) -> Any:
        """Open an account. 409 when the address has one."""
        names = (body.firstName, body.lastName)
        opened = auth.register(body.email, body.password, names, source())
        user = {
            "id": opened.id,
            "email": opened.email,
            "firstName": names[0],
            "lastName": names[1],
        }
        return {"user": user}, 201, {"Location": f"/api/users/{opened.id}"}

    @app.post("/api/auth/login", responses={200: TokenPair})
    def login(body: Login) -> dict[str, Any]:
        """An access token, and a refresh token that makes the next one."""
        return auth.log_in(body.email, body.password, source())

    @app.post("/api/auth/refresh", responses={200: TokenPair})
    def refresh(body: Refresh) -> dict[str, Any]:
        """A new pair for a refresh token, which is then used up. One that comes twice ends the whole login."""
        return auth.refresh(body.refresh_token)


def _install_logout(app: ServiceApp, auth: Auth) -> None:
    @app.post("/api/auth/logout", responses=NOTHING)
    def logout(body: Refresh) -> tuple[str, int]:
        """End the login that this refresh token belongs to."""
        auth.log_out(body.refresh_token)
        return "", 204

    @app.post("/api/auth/logout-everywhere", responses=NOTHING)
    @require_scope("user", "admin")
    def logout_everywhere() -> tuple[str, int]:
        """End every login of the caller, on whatever device, and with it this one. Access tokens, too, are refused within
        seconds. API keys stay."""
        caller = current()
        if caller.by_key:
            raise Problem(403, detail="An API key cannot log out: log in.")
        auth.log_out_everywhere(caller.subject or "")
        return "", 204


def _install_token(app: ServiceApp, auth: Auth) -> None:
    @app.post("/api/auth/token", responses={200: AccessToken})
    def token(body: TokenRequest) -> dict[str, Any]:
        """`grant_type` `api_key` with `api_key`, or `client_credentials` with `client_id` and `client_secret`."""
        if body.grant_type == "api_key":
            if body.api_key is None:
                raise Problem(422, "Invalid request", "api_key is missing")
            return auth.exchange_api_key(body.api_key).body()
        if body.client_id is None or body.client_secret is None:
            raise Problem(422, "Invalid request", "client_id or client_secret is missing")
        return auth.exchange_client(body.client_id, body.client_secret).body()


def _install_api_keys(app: ServiceApp, auth: Auth) -> None:
    @app.post("/api/auth/api-keys", responses={201: One[NewApiKeyShown]})
    @require_scope("user", "admin")
    def create_api_key(body: NewApiKey) -> Any:
        """A new key. Its text is in this answer, and nowhere else ever again."""
        caller = current()
        if caller.by_key:
            # A key that leaked would outlive its end, and its revocation, in the keys that it made.
            raise Problem(403, detail="An API key makes no further keys: log in.")
        asked: list[str] = list(body.scopes or ["user"])
        scopes = narrow(asked, caller.scopes)
        if len(scopes) < len(set(asked)):
            raise Problem(403, detail="A key cannot have a scope that you do not have.")
        ttl_s = None if body.expiresInDays is None else body.expiresInDays * DAY_S
        with auth.kit.db.session() as session:
            made = grants.create_api_key(
                session, caller.subject or "", body.name, scopes, auth.clock.time(), ttl_s
            )
        if made is None:
            raise Problem(409, detail=f"There are {grants.MAX_API_KEYS} keys already. Revoke one first.")
        row, text = made
        return {"data": {**_shown(row), "key": text}}, 201

    @app.get("/api/auth/api-keys", responses={200: ApiKeysAnswer})
    @require_scope("user", "admin")
    def list_api_keys() -> dict[str, Any]:
        """The caller's keys, by their prefixes."""
        with auth.kit.db.session(read_only=True) as session:
            rows = grants.list_api_keys(session, current().subject or "")
        return {"data": [_shown(row) for row in rows]}

    @app.delete("/api/auth/api-keys/<key_id>", responses=NOTHING)
    @require_scope("user", "admin")
    def revoke_api_key(path: ApiKeyPath) -> tuple[str, int]:
        """Revoke one of the caller's keys. Tokens made from it live on until they expire, minutes later."""
        with auth.kit.db.session() as session:
            gone = grants.revoke_api_key(session, current().subject or "", path.key_id, auth.clock.time())
        if not gone:
            raise Problem(404, detail="You have no such key.")
        return "", 204


def _shown(row: ApiKey) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "prefix": row.prefix,
        "scopes": row.scopes.split(),
        "createdAt": _iso(row.created_at),
        "expiresAt": _iso(row.expires_at),
        "lastUsedAt": _iso(row.last_used_at),
    }


def _iso(time_s: float | None) -> str | None:
    return None if time_s is None else f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _install_sessions(app: ServiceApp, auth: Auth, source: Source) -> None:
    @app.post("/api/auth/session", responses={200: SessionAnswer})
    def open_session(body: Login) -> Response:
        """Log a browser in: the session is a cookie that scripts cannot read and other sites cannot send."""
        owner, text = auth.open_session(body.email, body.password, source(), request.cookies.get(COOKIE))
        ttl_s = auth.settings.auth_session_ttl_s
        response = jsonify(user={"id": owner.id, "email": owner.email}, expires_in=ttl_s)
        response.set_cookie(COOKIE, text, max_age=ttl_s, **_cookie())
        return response

    @app.delete("/api/auth/session", responses=NOTHING)
    def close_session() -> Response:
        """Log the browser out."""
        text = request.cookies.get(COOKIE)
        if text:
            auth.sessions.close(text)
        response = Response(status=204)
        response.delete_cookie(COOKIE, **_cookie())
        return response

    @app.post("/api/auth/session/token", responses={200: AccessToken})
    def session_token() -> dict[str, Any]:
        """A short token for the session in the cookie."""
        return auth.exchange_session(request.cookies.get(COOKIE)).body()


def _cookie() -> dict[str, Any]:
    return {"path": COOKIE_PATH, "httponly": True, "samesite": "Strict", "secure": request.is_secure}


def _install_operations(app: ServiceApp, auth: Auth) -> None:
    max_age_s = min(JWKS_MAX_AGE_S, int(auth.settings.auth_key_publish_s / 4))
    caching = f"public, max-age={max_age_s}" if max_age_s else "no-cache"

    @app.get("/api/auth/.well-known/jwks.json", responses={200: Jwks})
    def jwks() -> Any:
        """The keys that tokens are checked with (RFC 7517)."""
        return auth.ring.jwks(), 200, {"Cache-Control": caching}

    @app.post("/api/auth/keys/rotate", responses={200: One[Rotation], 201: One[Rotation]})
    @require_scope("admin")
    def rotate() -> Any:
        """Publish a new signing key, to be used from `activeFrom` (Unix time) on. 200 when one is waiting already."""
        rotated = auth.ring.rotate()
        data = {"kid": rotated.kid, "activeFrom": rotated.active_from}
        return {"data": data}, 201 if rotated.created else 200

    @app.get("/internal/auth/revocations", responses={200: RevocationsAnswer})
    def revoked() -> dict[str, Any]:
        """The accounts whose tokens are void, if they were issued at `before` or earlier (Unix time in seconds), and until
        when that matters. For all that check tokens; the edge lets no client in here."""
        return store.revocations(auth.kit.db, auth.clock.time())
