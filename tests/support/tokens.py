"""Tokens that must not be taken: signed by a stranger, unsigned, or changed after they were signed."""

from __future__ import annotations

import base64
import json
import time
import uuid
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


def encode(part: dict[str, Any]) -> str:
    """One part of a token: JSON in base64url without padding."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def decode(part: str) -> dict[str, Any]:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


class Issuer:
    """A key pair of its own, and tokens in the shape that auth gives them."""

    def __init__(self, kid: str = "stranger") -> None:
        self.kid = kid
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def public_pem(self) -> bytes:
        """PEM SubjectPublicKeyInfo, as HAProxy wants it."""
        return self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def token(self, **claims: Any) -> str:
        """A good token of this issuer for an hour, but for the claims given."""
        now = int(time.time())
        whole = {
            "iss": "breakwater",
            "aud": "breakwater-api",
            "sub": str(uuid.uuid4()),
            "scope": "user",
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
            "jti": uuid.uuid4().hex,
        }
        return jwt.encode(whole | claims, self.key, algorithm="RS256", headers={"kid": self.kid})

    def with_header_of(self, good: str) -> str:
        """A good token's header (its `kid`) and claims, signed by this key."""
        header, claims, _ = good.split(".")
        return jwt.encode(decode(claims), self.key, algorithm="RS256", headers={"kid": decode(header)["kid"]})

    def unsigned(self, good: str) -> str:
        """A good token's claims with `alg: none` and no signature."""
        header, claims, _ = good.split(".")
        return f"{encode(decode(header) | {'alg': 'none'})}.{claims}."

    def promoted(self, good: str) -> str:
        """A good token that calls itself an administrator's under the old signature."""
        header, claims, signature = good.split(".")
        return f"{header}.{encode(decode(claims) | {'scope': 'admin'})}.{signature}"
