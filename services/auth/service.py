"""What auth does, apart from HTTP: registration, logins and exchanges, each a short sequence of its parts.

No transaction is open while a password is hashed or another service is called: SQLite has one writer at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy.orm import Session

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.errors import CallError
from services.auth import grants, store
from services.auth.domain import narrow
from services.auth.events import UserCreated
from services.auth.grants import Clients, Sessions
from services.auth.keyring import Access, KeyRing, Minter
from services.auth.passwords import Hasher
from services.auth.settings import AuthSettings
from services.auth.store import Claim, Identity
from services.kit import Kit, Problem
from services.kit.auth.revocations import Revocations

log = structlog.get_logger(__name__)

USERS_DEADLINE_S = 5.0
# How long a broken-off registration reserves its address: longer than users may take.
CLAIM_S = 15.0
# One login in this many sweeps away what has run out: no timer is needed, and no instance is special.
SWEEP_ONE_IN = 200
BAD_CREDENTIALS = "The e-mail address or the password is wrong."


@dataclass(frozen=True, slots=True)
class Auth:
    """The parts of auth, put together once a process. Thread-safe.

    `followed` are the revocations as the verifier of this instance knows them.
    """

    kit: Kit
    settings: AuthSettings
    hasher: Hasher
    ring: KeyRing
    minter: Minter
    clients: Clients
    followed: Revocations
    clock: Clock = field(default=SYSTEM_CLOCK)

    def register(self, email: str, password: str, names: tuple[str, str], source: str) -> Identity:
        """Open an account here and in users, or in neither.

        The credentials are claimed first, inactive; then users opens the account; then they become active. When users
        does not answer, the claim is given back, and the same registration works as soon as users is there again.
        Raises Problem 409 when the address is taken, or being taken at this moment, 503 when users is away.
        """
        with self.hasher.slot():
            password_hash = self.hasher.hash(password)
        now = self.clock.time()
        with self.kit.db.session() as session:
            held = store.claim(session, email, password_hash, now, CLAIM_S)
        if held is None:
            raise _taken()
        try:
            self._open_in_users(held, email, names)
        except Exception:
            with self.kit.db.session() as session:
                store.release(session, held)
            raise
        with self.kit.db.session() as session:
            if not store.activate(session, held):
                raise _taken()
            store.attempt_succeeded(session, email, source, self.clock.time())
            created = UserCreated(
                userId=held.account_id,
                email=email,
                firstName=names[0],
                lastName=names[1],
                createdAt=datetime.fromtimestamp(self.clock.time(), UTC),
            )
            self.kit.events.publish(created)
        log.info("account registered", user_id=held.account_id)
        return Identity(held.account_id, email, ("user",))

    def _open_in_users(self, held: Claim, email: str, names: tuple[str, str]) -> None:
        body = {"id": held.account_id, "email": email, "firstName": names[0], "lastName": names[1]}
        try:
            answer = self.kit.client.request(
                "POST",
                "users",
                "/internal/users/accounts",
                json=body,
                # It is idempotent by id, so an attempt whose answer was lost may be repeated.
                headers={"Idempotency-Key": f"register-{held.token}"},
                deadline_s=USERS_DEADLINE_S,
            )
        except CallError as error:
            log.warning("users did not open the account", reason=str(error))
            raise _users_away() from None
        if answer.status == 409:
            raise _taken()
        if answer.status not in (200, 201):
            log.warning("users refused the account", status=answer.status)
            raise _users_away()

    def check_password(self, email: str, password: str, source: str) -> Identity:
        """The account of this e-mail and password. Raises Problem 401, 429 while locked out, 503 when saturated.

        Everything but the hash is the same for an unknown address, and the hash costs the same.
        """
        with self.hasher.slot():
            with self.kit.db.session() as session:
                wait_s = store.begin_attempt(session, email, source, self.clock.time())
                found = store.credentials(session, email)
            if wait_s:
                log.info("login refused for now", source=source, wait_s=round(wait_s, 1))
                raise _locked(wait_s)
            identity, password_hash = found or (None, None)
            fits = self.hasher.verify(password_hash, password)
            if identity is None or not fits or password_hash is None:
                raise Problem(401, detail=BAD_CREDENTIALS, headers={"WWW-Authenticate": "Bearer"})
            renewed = self.hasher.hash(password) if self.hasher.outdated(password_hash) else None
        with self.kit.db.session() as session:
            store.attempt_succeeded(session, email, source, self.clock.time())
            if renewed:
                store.set_password_hash(session, identity.id, renewed)
            if self.clock.random() * SWEEP_ONE_IN < 1:
                store.forget_old_tallies(session, self.clock.time())
                grants.forget_expired_families(session, self.clock.time())
                store.forget_old_revocations(session, self.clock.time(), self._longest_s())
        return identity

    def log_in(self, email: str, password: str, source: str) -> dict[str, Any]:
        """An access token and the first refresh token of a new family."""
        identity = self.check_password(email, password, source)
        now = self.clock.time()
        with self.kit.db.session() as session:
            refresh = grants.open_family(session, identity.id, now, self.settings.auth_refresh_ttl_s)
            issued_at = store.issue_time(session, identity.id, now)
        return {**self._access(identity, issued_at).body(), "refresh_token": refresh}

    def refresh(self, token: str) -> dict[str, Any]:
        """The successor of a refresh token and a new access token. Raises Problem 401."""
        now = self.clock.time()
        with self.kit.db.session() as session:
            outcome = grants.rotate_refresh(session, token, now)
            if not isinstance(outcome, grants.Refusal):
                issued_at = store.issue_time(session, outcome.owner.id, now)
        if isinstance(outcome, grants.Refusal):
            if outcome is grants.Refusal.REUSED:
                log.warning("refresh token reused, its family is revoked")
            raise Problem(
                401, detail="The refresh token is not valid.", headers={"WWW-Authenticate": "Bearer"}
            )
        return {**self._access(outcome.owner, issued_at).body(), "refresh_token": outcome.token}

    def log_out(self, token: str) -> None:
        with self.kit.db.session() as session:
            grants.log_out(session, token, self.clock.time())

    def log_out_everywhere(self, account_id: str) -> None:
        """End every login, browser session and access token of an account. Raises AccountGone.

        API keys stay: they are revoked one by one, and exchanged for a new token once theirs is refused.
        """
        with self.kit.db.session() as session:
            store.hold(session, account_id)
            grants.revoke_families(session, account_id, self.clock.time())
            self._revoke(session, account_id)
        self.followed.refresh()
        log.info("logged out everywhere", user_id=account_id)

    def remove(self, session: Session, account_id: str) -> None:
        """End an account that users has removed: its credentials and everything that was issued for it."""
        if store.remove(session, account_id):
            self._revoke(session, account_id)
            log.info("credentials removed", user_id=account_id)

    def _revoke(self, session: Session, account_id: str) -> None:
        store.revoke(session, account_id, self.clock.time(), self.settings.longest_token_s)

    def _longest_s(self) -> int:
        return max(self.settings.auth_session_ttl_s, self.settings.longest_token_s)

    def _access(self, identity: Identity, issued_at: int) -> Access:
        return self.minter.mint(identity.id, identity.scopes, self.settings.auth_access_ttl_s, issued_at)

    def exchange_api_key(self, text: str) -> Access:
        """A short token for an API key: the scopes of both the key and its owner. Raises Problem 401."""
        now = self.clock.time()
        with self.kit.db.session() as session:
            used = grants.use_api_key(session, text, now)
            if used is None:
                raise Problem(401, detail="The API key is not valid.")
            key, owner = used
            scopes, key_id = narrow(key.scopes.split(), owner.scopes), key.id
            issued_at = store.issue_time(session, owner.id, now)
        return self.minter.mint(
            owner.id, scopes, self.settings.auth_exchange_ttl_s, issued_at, api_key=key_id
        )

    def exchange_client(self, name: str, secret: str) -> Access:
        """A token for a service. Raises Problem 401."""
        if not self.clients.verify(name, secret):
            log.warning("client credentials refused", client=name[:63])
            raise Problem(401, detail="The client's credentials are not valid.")
        return self.service_token(name)

    def service_token(self, name: str) -> Access:
        return self.minter.mint(f"service:{name}", ("service",), self.settings.auth_access_ttl_s)

    @property
    def sessions(self) -> Sessions:
        """Browser sessions. Raises Problem 503 where there is no Redis for them."""
        redis = self.kit.redis_state
        if redis is None:
            raise Problem(503, detail="Sessions are not available.", headers={"Retry-After": "5"})
        return Sessions(redis, self.settings.auth_session_ttl_s, self.ring.kek)

    def open_session(
        self, email: str, password: str, source: str, replacing: str | None
    ) -> tuple[Identity, str]:
        """A browser session: its owner, and the text of its cookie."""
        sessions = self.sessions
        identity = self.check_password(email, password, source)
        now = self.clock.time()
        with self.kit.db.session() as session:
            store.hold(session, identity.id)
            opened_at = store.issue_time(session, identity.id, now)
        return identity, sessions.open(identity.id, opened_at, replacing)

    def exchange_session(self, token: str | None) -> Access:
        """A short token for a browser session. Raises Problem 401."""
        found = self.sessions.find(token) if token else None
        identity, now = None, self.clock.time()
        if found is not None:
            with self.kit.db.session(read_only=True) as session:
                if found.opened_at > store.revoked_before(session, found.account_id):
                    identity = store.find_active(session, found.account_id)
                issued_at = store.issue_time(session, found.account_id, now)
        if identity is None:
            raise Problem(401, detail="There is no session.")
        return self.minter.mint(identity.id, identity.scopes, self.settings.auth_exchange_ttl_s, issued_at)


def _taken() -> Problem:
    return Problem(409, detail="An account with this e-mail address exists.")


def _users_away() -> Problem:
    detail = "The account cannot be opened at the moment. Try again."
    return Problem(503, detail=detail, headers={"Retry-After": "2"})


def _locked(wait_s: float) -> Problem:
    seconds = max(1, int(wait_s + 0.999))
    detail = f"Too many failed attempts. Try again in {seconds} s."
    return Problem(429, detail=detail, headers={"Retry-After": str(seconds)}, retry_after_s=seconds)
