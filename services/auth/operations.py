"""The public keys, their rotation, what has been revoked, and what users says to auth."""

from __future__ import annotations

from typing import Any

from services.auth import revocations
from services.auth.schemas import AccountPath, Jwks, RevocationsAnswer, Rotation
from services.auth.service import Auth
from services.kit import ServiceApp, require_scope, require_service
from services.kit.web.resources import NOTHING, One

# The key set may be cached for a fraction of the time between a key's publication and its first use.
JWKS_MAX_AGE_S = 15


def install(app: ServiceApp, auth: Auth) -> None:
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

    @app.delete("/internal/auth/accounts/<account_id>", responses=NOTHING)
    @require_service("users")
    def remove_account(path: AccountPath) -> tuple[str, int]:
        """Remove credentials, refresh tokens and API keys of an account that users has removed. As often as you like."""
        auth.remove(path.account_id)
        return "", 204

    @app.get("/internal/auth/revocations", responses={200: RevocationsAnswer})
    def revoked() -> dict[str, Any]:
        """The accounts whose tokens are void, if they were issued at `before` or earlier (Unix time in seconds), and until
        when that matters. For all that check tokens; the edge lets no client in here."""
        return revocations.read(auth.kit.db, auth.clock.time())
