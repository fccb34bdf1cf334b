"""A signer of access tokens with a key set of its own, served over HTTP as auth serves its: for tests of one service."""

from __future__ import annotations

import contextlib
import json
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jwt.algorithms import RSAAlgorithm

from tests.support.scripted import upstream
from tests.support.tokens import Issuer


@dataclass
class Signer:
    """`url` is what AUTH_JWKS_URL takes."""

    url: str
    issuer: Issuer

    def token(self, subject: str, scope: str = "user", **claims: Any) -> str:
        """A token as auth makes it; `claims` are added, or replace what it says."""
        return self.issuer.good(**{"sub": subject, "scope": scope, "jti": uuid.uuid4().hex} | claims)


@contextlib.contextmanager
def signer() -> Iterator[Signer]:
    """A new key, and a server of its JWKS on a free loopback port."""
    with tempfile.TemporaryDirectory() as folder:
        issuer = Issuer.make(uuid.uuid4().hex[:16], Path(folder))
    key = RSAAlgorithm.to_jwk(issuer.key.public_key(), as_dict=True)
    body = json.dumps({"keys": [{**key, "kid": issuer.kid, "use": "sig", "alg": "RS256"}]}).encode()
    with upstream(lambda handler: handler.answer(200, body)) as server:
        yield Signer(f"http://127.0.0.1:{server.port}/jwks.json", issuer)
