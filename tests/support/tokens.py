"""Tokens as an attacker makes them: any header, any payload bytes, any signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from haproxy.controller.config.model import VerifyKey


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Issuer:
    """A signing key, and its public half in a PEM file."""

    kid: str
    key: rsa.RSAPrivateKey
    pem_path: Path

    @classmethod
    def make(cls, kid: str, folder: Path) -> Issuer:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        path = folder / f"{kid}.pem"
        path.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        return cls(kid, key, path)

    @property
    def verify_key(self) -> VerifyKey:
        return VerifyKey(self.kid, str(self.pem_path))

    def sign(self, payload: str | dict[str, Any], **header: Any) -> str:
        """A token signed with RS256 over exactly this payload, whatever its header claims."""
        text = payload if isinstance(payload, str) else json.dumps(payload)
        head = {"alg": "RS256", "typ": "JWT", "kid": self.kid} | header
        signed = f"{b64(json.dumps(head).encode())}.{b64(text.encode())}"
        return f"{signed}.{b64(self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def good(self, **changes: Any) -> str:
        """A token that passes; `changes` replace claims, and `...` takes one away."""
        return self.sign(claims(**changes))


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    made: dict[str, Any] = {
        "iss": "breakwater",
        "aud": "breakwater-api",
        "sub": "user-1",
        "scope": "user admin",
        "iat": now,
        "exp": now + 600,
        "jti": "j1",
    }
    return {k: v for k, v in (made | changes).items() if v is not ...}


def unsigned(payload: dict[str, Any], **header: Any) -> str:
    """`alg: none` and an empty signature."""
    return f"{b64(json.dumps({'alg': 'none', 'typ': 'JWT'} | header).encode())}.{b64(json.dumps(payload).encode())}."


def hmac_signed(payload: dict[str, Any], secret: bytes, **header: Any) -> str:
    """HS256 with a secret that an attacker knows: the key's path or its public text."""
    head = {"alg": "HS256", "typ": "JWT"} | header
    signed = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(payload).encode())}"
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"
