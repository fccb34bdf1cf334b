"""A browser that has subscribed to pushes, and reads what it gets."""

from __future__ import annotations

import base64
import json
import os

import http_ece
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Browser:
    """`p256dh` and `auth` are what its subscription says."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._secret = os.urandom(16)
        point = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.p256dh, self.auth = _encoded(point), _encoded(self._secret)

    def read(self, body: bytes) -> dict[str, str]:
        """The message in the body of a push. Raises http_ece.ECEException for one that is not for this browser."""
        clear = http_ece.decrypt(body, private_key=self._key, auth_secret=self._secret, version="aes128gcm")
        found: dict[str, str] = json.loads(clear)
        return found
