"""auth over HTTP: its parts put together, and its endpoints.

Secrets go in and out here, so no answer may be stored anywhere (`Cache-Control: no-store`); the key set alone is public.
"""

from __future__ import annotations

from flask import Response, request

from discovery.clock import SYSTEM_CLOCK
from services.auth import endpoints, store
from services.auth.domain import source_of
from services.auth.grants import Clients
from services.auth.keyring import KeyRing, Minter, OwnToken, read_kek
from services.auth.passwords import Cost, Hasher, Saturated
from services.auth.service import Auth
from services.auth.settings import AuthSettings
from services.auth.store import AccountGone, Base
from services.kit import Kit, Problem, ServiceApp, create_service
from services.kit.auth.jwks import KeySet
from services.kit.auth.revocations import Revocations
from services.kit.auth.verifier import TokenVerifier
from services.kit.web.problems import render
from services.users.events import UserDeleted

# By how much the clocks of those that verify tokens may differ from ours.
CLOCK_SKEW_S = 60.0


def create_app(settings: AuthSettings | None = None) -> ServiceApp:
    """The application. Raises KekError for a key-encryption key that cannot be used, ValueError for bad networks."""
    settings = settings or AuthSettings()  # type: ignore[call-arg]  # from the environment
    app = create_service(
        "auth",
        paths=["/api/auth"],
        auth="public",
        balance="roundrobin",
        domain="identity",
        settings=settings,
        models_metadata=Base.metadata,
        calls=["users"],
        events=True,
    )
    auth = build(app.extensions["kit"], settings)

    def source() -> str:
        return source_of(request.remote_addr)

    def on_saturated(error: Saturated) -> Response:
        detail = "Too many logins at the moment. Try again."
        return render(Problem(503, detail=detail, headers={"Retry-After": str(error.retry_after_s)}), "auth")

    def not_to_be_stored(response: Response) -> Response:
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def on_gone(_: AccountGone) -> Response:
        challenge = {"WWW-Authenticate": 'Bearer realm="breakwater", error="invalid_token"'}
        return render(Problem(401, detail="The account is gone.", headers=challenge), "auth")

    app.register_error_handler(Saturated, on_saturated)
    app.register_error_handler(AccountGone, on_gone)
    app.after_request(not_to_be_stored)
    app.extensions["auth"] = auth
    endpoints.install(app, auth, source)
    return app


def build(kit: Kit, settings: AuthSettings) -> Auth:
    """The parts of auth. Nothing is opened yet: this runs before the worker is forked.

    auth checks tokens with, and makes its own from, the keys that it holds: it never has to call itself.
    """
    ring = KeyRing(
        kit.db,
        read_kek(settings.auth_kek_file),
        publish_s=settings.auth_key_publish_s,
        overlap_s=max(settings.auth_access_ttl_s, settings.auth_exchange_ttl_s) + CLOCK_SKEW_S,
        refresh_s=settings.auth_key_refresh_s,
    )
    minter = Minter(ring, settings.auth_issuer, settings.auth_audience)
    keys = KeySet(ring.jwks, refresh_s=settings.auth_key_refresh_s, min_interval_s=0.2)
    followed = kit.revocations = Revocations(lambda: store.revocations(kit.db, SYSTEM_CLOCK.time()))
    kit.on_start(followed.start)
    kit.tokens = TokenVerifier(
        keys, issuer=settings.auth_issuer, audience=settings.auth_audience, revocations=followed
    )
    kit.token_source = OwnToken(minter, settings.auth_exchange_ttl_s)
    cost = Cost(settings.auth_argon2_time, settings.auth_argon2_memory_kib, settings.auth_argon2_lanes)
    hasher = Hasher(cost, slots=settings.auth_argon2_slots, wait_s=settings.auth_argon2_wait_s)
    auth = Auth(kit, settings, hasher, ring, minter, Clients(settings.auth_clients_file), followed)
    kit.events.consumes(UserDeleted)(lambda event, session: auth.remove(session, event.userId))
    return auth
