"""A signer of access tokens with a key set of its own, served over HTTP as auth serves its: for tests of one service."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa


@dataclass
class Signer:
    """`url` is what AUTH_JWKS_URL takes."""

    url: str
    kid: str
    key: rsa.RSAPrivateKey

    def token(self, subject: str, scope: str = "user", **claims: Any) -> str:
        """A token as auth makes it, good for 15 minutes; `claims` are added, or replace what it says."""
        now = int(time.time())
        values = {
            "iss": "breakwater",
            "aud": "breakwater-api",
            "sub": subject,
            "scope": scope,
            "iat": now,
            "exp": now + 900,
            "jti": uuid.uuid4().hex,
        }
        return jwt.encode({**values, **claims}, self.key, algorithm="RS256", headers={"kid": self.kid})


@contextlib.contextmanager
def signer() -> Iterator[Signer]:
    """A new key, and a server of its JWKS on a free loopback port."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    kid = uuid.uuid4().hex[:16]
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    body = json.dumps({"keys": [{**public, "kid": kid, "use": "sig", "alg": "RS256"}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Signer(f"http://127.0.0.1:{server.server_port}/jwks.json", kid, key)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
