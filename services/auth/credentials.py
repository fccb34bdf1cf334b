"""Endpoints for an e-mail address and its password: register, log in, refresh, log out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from services.auth.schemas import Login, OpenedAnswer, Refresh, Register, TokenPair
from services.auth.service import Auth
from services.kit import Problem, ServiceApp, current, require_scope
from services.kit.web.resources import NOTHING


def install(app: ServiceApp, auth: Auth, source: Callable[[], str]) -> None:
    """Add the endpoints. `source` tells the network that the current request came from."""

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

    _install_logout(app, auth)


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
