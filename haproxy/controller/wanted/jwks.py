"""The keys that tokens are verified with: polled from a live instance of `auth`, checked, and kept as PEM files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt import InvalidKeyError
from jwt.algorithms import RSAAlgorithm

from discovery.errors import ContractError
from haproxy.controller.config.model import Server, VerifyKey
from haproxy.controller.loop.steady import Health, steady
from haproxy.controller.metrics import Metrics
from haproxy.controller.wanted.auth_poll import AuthDocument

log = structlog.get_logger(__name__)

PATH = "/api/auth/.well-known/jwks.json"
MAX_KEYS = 8
MIN_BITS = 2048
# A key of more bits costs the edge more for every token than any issuer needs.
MAX_BITS = 8192
MAX_BYTES = 65536
_KID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def parse_jwks(data: bytes) -> dict[str, bytes]:
    """kid → PEM SubjectPublicKeyInfo. Raises ContractError unless every key is an RSA public key fit for RS256.

    An empty set is refused as well: it would lock every client out, and no issuer means it.
    """
    try:
        document = json.loads(data)
        keys = document["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError("jwks", data[:80], f"not a key set: {error!r}") from None
    if not isinstance(keys, list) or not 1 <= len(keys) <= MAX_KEYS:
        raise ContractError("jwks", data[:80], f"must hold 1 to {MAX_KEYS} keys")
    found: dict[str, bytes] = {}
    for key in keys:
        kid, pem = _parse_key(key)
        if kid in found:
            raise ContractError("kid", kid, "stands there twice")
        found[kid] = pem
    return found


def _parse_key(key: Any) -> tuple[str, bytes]:
    if not isinstance(key, dict):
        raise ContractError("jwks", key, "not a key")
    kid = key.get("kid")
    if not isinstance(kid, str) or not _KID.fullmatch(kid):
        raise ContractError("kid", kid, "must be 1-64 of A-Z, a-z, 0-9, _ and -")
    if key.get("kty") != "RSA" or key.get("alg", "RS256") != "RS256" or key.get("use", "sig") != "sig":
        raise ContractError("kid", kid, "must be an RSA key for RS256 signatures")
    if "d" in key or "p" in key:
        raise ContractError("kid", kid, "is a private key")
    try:
        public = RSAAlgorithm.from_jwk(key)
    except (InvalidKeyError, ValueError, TypeError) as error:
        raise ContractError("kid", kid, f"is no key: {error}") from None
    if not isinstance(public, rsa.RSAPublicKey) or not MIN_BITS <= public.key_size <= MAX_BITS:
        raise ContractError("kid", kid, f"must have {MIN_BITS} to {MAX_BITS} bits")
    return kid, public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def stored_keys(folder: Path) -> tuple[VerifyKey, ...]:
    """The keys that are kept in a folder, sorted by kid; other files are left out."""
    keys = []
    for path in sorted(folder.glob("*.pem")):
        if not _KID.fullmatch(path.stem):
            continue
        try:
            pem = path.read_bytes()
            public = serialization.load_pem_public_key(pem)
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            log.error("stored key left out", path=str(path), error=str(error))
            continue
        if isinstance(public, rsa.RSAPublicKey) and public.key_size >= MIN_BITS:
            keys.append(VerifyKey(path.stem, str(path.absolute()), pem))
    return tuple(keys)[:MAX_KEYS]


class KeyPoll:
    """Polls on a thread of its own; `callback` gets the whole set when it changes. auth away: the set stays."""

    def __init__(
        self,
        folder: Path,
        servers: Callable[[], Iterable[Server]],
        callback: Callable[[tuple[VerifyKey, ...]], None],
        metrics: Metrics,
        health: Health,
        every_s: float,
    ) -> None:
        self._folder = folder
        self._document = AuthDocument("keys", PATH, MAX_BYTES, parse_jwks, servers, metrics)
        self._callback = callback
        self._every_s = every_s
        self._known: dict[str, bytes] = {}
        self._loop = steady("keys", self._turn, health)
        self.start, self.stop = self._loop.start, self._loop.stop

    def look(self) -> None:
        """Poll at once: auth has changed."""
        self._loop.hurry()

    def prune(self) -> None:
        """Delete the files of keys that are out of use; call it after a reload without them."""
        for path in self._folder.glob("*.pem") if self._known else ():
            if path.stem not in self._known:
                path.unlink(missing_ok=True)

    def _turn(self) -> float:
        keys = self._document.poll()
        if keys is not None and keys != self._known:
            self._known = keys
            log.info("keys to verify tokens with", kids=sorted(keys))
            files = {kid: str((self._folder / f"{kid}.pem").absolute()) for kid in keys}
            self._callback(tuple(VerifyKey(kid, files[kid], keys[kid]) for kid in sorted(keys)))
        # Until the first set is here, soon: no token is accepted before.
        return self._every_s if self._known else min(1.0, self._every_s)
