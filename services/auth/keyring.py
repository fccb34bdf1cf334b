"""The signing keys: in the database, encrypted, the same for every instance of auth. And the access tokens that they sign.

Private keys are encrypted with the key-encryption key (Fernet) of AUTH_KEK_FILE: a copy of the database signs nothing. The
file may hold several keys, a line each: the first encrypts, all of them decrypt, so that it can be changed too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import structlog
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from discovery.clock import SYSTEM_CLOCK, Clock
from services.auth.domain import KeySchedule, KeyTimes, schedule
from services.auth.store import SigningKey
from services.kit.db.portable import insert_new
from services.kit.db.session import Database

log = structlog.get_logger(__name__)

KEY_BITS = 2048


class KekError(Exception):
    """AUTH_KEK_FILE is missing, malformed, or not the one that the stored keys were encrypted with."""


def read_kek(path: Path) -> MultiFernet:
    """The key-encryption keys of a file, one to a line. Raises KekError."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        if not lines:
            raise KekError(f"AUTH_KEK_FILE={path}: is empty")
        return MultiFernet([Fernet(line) for line in lines])
    except OSError as error:
        raise KekError(f"AUTH_KEK_FILE={path}: {error.strerror}") from None
    except ValueError:
        raise KekError(f"AUTH_KEK_FILE={path}: not a Fernet key (32 bytes in URL-safe base64)") from None


@dataclass(frozen=True, slots=True)
class _Ring:
    """One reading of the table. `read_at` is monotonic time."""

    read_at: float
    times: tuple[KeyTimes, ...]
    jwks: dict[str, dict[str, Any]]
    encrypted: dict[str, str]


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a rotation came to. `created` is false when one was under way already: then that one's key is named."""

    kid: str
    active_from: float
    created: bool


class KeyRing:
    """The keys as of at most `refresh_s` ago. Thread-safe. When the database is away the last reading stands."""

    def __init__(
        self,
        db: Database,
        kek: MultiFernet,
        *,
        publish_s: float,
        overlap_s: float,
        refresh_s: float,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self.kek = kek
        self._publish_s = publish_s
        self._overlap_s = overlap_s
        self._refresh_s = refresh_s
        self._clock = clock
        self._lock = threading.Lock()
        self._ring: _Ring | None = None
        self._private: dict[str, RSAPrivateKey] = {}

    def signing_key(self) -> tuple[str, RSAPrivateKey]:
        """(kid, key) that tokens are signed with now. Makes the very first key when there is none."""
        ring, keys = self._current()
        kid = keys.active.kid
        private = self._private.get(kid)
        if private is None:
            private = self._private[kid] = self._decrypt(ring.encrypted[kid])
        return kid, private

    def jwks(self) -> dict[str, Any]:
        """The JSON Web Key Set: the signing key, the one to come, and those that live tokens may be signed with."""
        ring, keys = self._current()
        return {"keys": [ring.jwks[key.kid] for key in keys.published]}

    def rotate(self) -> Rotated:
        """Publish a new key, which signs from `publish_s` on. While one is waiting, that one is answered instead.

        Keys whose last token has expired are deleted on the way.
        """
        self._reload()
        ring, keys = self._current()
        now = self._clock.time()
        if keys.next is not None:
            return Rotated(keys.next.kid, keys.next.active_from, created=False)
        kid = self._add(keys.active.generation + 1, now + self._publish_s)
        with self._db.session() as session:
            gone = [key.kid for key in keys.expired]
            session.execute(delete(SigningKey).where(SigningKey.kid.in_(gone)))
        ring = self._reload()
        newest = max(ring.times, key=lambda key: key.generation)
        log.info("signing key rotated", kid=newest.kid, active_from=newest.active_from, removed=len(gone))
        return Rotated(newest.kid, newest.active_from, created=newest.kid == kid)

    def _current(self) -> tuple[_Ring, KeySchedule]:
        ring = self._ring
        if ring is None or self._clock.monotonic() - ring.read_at >= self._refresh_s:
            ring = self._refreshed(ring)
        keys = schedule(ring.times, self._clock.time(), self._overlap_s)
        if keys is None:
            self._add(1, self._clock.time())
            ring = self._reload()
            keys = schedule(ring.times, self._clock.time(), self._overlap_s)
        if keys is None:
            raise KekError("no signing key can be kept")
        return ring, keys

    def _refreshed(self, stale: _Ring | None) -> _Ring:
        """Read again; one thread does, the others go on with what they have."""
        if not self._lock.acquire(blocking=stale is None):
            return stale or self._reload()
        try:
            ring = self._ring
            if ring is not None and ring is not stale:
                return ring
            return self._reload()
        except SQLAlchemyError as error:
            if stale is None:
                raise
            log.warning("signing keys not read, the last ones stand", error=type(error).__name__)
            return stale
        finally:
            self._lock.release()

    def _reload(self) -> _Ring:
        with self._db.session(read_only=True) as session:
            rows = list(session.scalars(select(SigningKey)))
            self._ring = _Ring(
                read_at=self._clock.monotonic(),
                times=tuple(KeyTimes(row.kid, row.generation, row.active_from) for row in rows),
                jwks={row.kid: json.loads(row.public_jwk) for row in rows},
                encrypted={row.kid: row.private_encrypted for row in rows},
            )
        return self._ring

    def _add(self, generation: int, active_from: float) -> str:
        """Make a key. When another instance was first with this generation, its key stands and ours is dropped."""
        private = generate_private_key(public_exponent=65537, key_size=KEY_BITS)
        jwk = public_jwk(private)
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with self._db.session() as session:
            insert_new(
                session,
                SigningKey,
                kid=jwk["kid"],
                generation=generation,
                active_from=active_from,
                private_encrypted=self.kek.encrypt(pem).decode(),
                public_jwk=json.dumps(jwk),
            )
        return str(jwk["kid"])

    def _decrypt(self, encrypted: str) -> RSAPrivateKey:
        try:
            pem = self.kek.decrypt(encrypted.encode())
        except InvalidToken:
            raise KekError("AUTH_KEK_FILE is not the one that the stored keys were encrypted with") from None
        key = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(key, RSAPrivateKey):
            raise KekError("a stored signing key is no RSA key")
        return key


def public_jwk(private: RSAPrivateKey) -> dict[str, Any]:
    """The public half as a JWK. Its `kid` comes from the thumbprint of RFC 7638, in hex: it names the key itself, and
    is a good file name (the edge keeps `<kid>.pem`)."""
    numbers = private.public_key().public_numbers()
    required = {"e": _base64url(numbers.e), "kty": "RSA", "n": _base64url(numbers.n)}
    canonical = json.dumps(required, separators=(",", ":"), sort_keys=True).encode()
    kid = hashlib.sha256(canonical).hexdigest()[:32]
    return {**required, "kid": kid, "use": "sig", "alg": "RS256"}


def _base64url(number: int) -> str:
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


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
