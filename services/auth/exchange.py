"""Endpoints that exchange something long-lived for a short token: API keys, services' secrets, browser sessions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from flask import Response, jsonify, request

from services.auth import grants
from services.auth.domain import narrow
from services.auth.models import ApiKey
from services.auth.schemas import (
    AccessToken,
    ApiKeyPath,
    ApiKeysAnswer,
    Login,
    NewApiKey,
    NewApiKeyShown,
    SessionAnswer,
    TokenRequest,
)
from services.auth.service import Auth
from services.auth.sessions import COOKIE, COOKIE_PATH
from services.kit import Problem, ServiceApp, current, require_scope
from services.kit.web.resources import NOTHING, One

DAY_S = 86400.0


def install(app: ServiceApp, auth: Auth, source: Callable[[], str]) -> None:
    """Add the endpoints. `source` tells the network that the current request came from."""

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

    _install_api_keys(app, auth)
    _install_sessions(app, auth, source)


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


def _install_sessions(app: ServiceApp, auth: Auth, source: Callable[[], str]) -> None:
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
