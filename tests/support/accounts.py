"""Users of the stack, made through the edge as any client would make them."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from tests.support.wire import Reply, Wire, WireError

# Less than the 15 minutes that a token lives.
_RENEW_AFTER_S = 480


def ask(
    port: int,
    method: str,
    path: str,
    *,
    headers: dict[str, str] | None = None,
    json_body: Any = None,
    timeout_s: float = 10,
    host: str = "127.0.0.1",
) -> Reply:
    """One request to the edge on a connection of its own. Raises WireError."""
    body = b"" if json_body is None else json.dumps(json_body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if json_body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    wire = Wire(host, port, timeout_s)
    try:
        return wire.exchange("\r\n".join([*lines, "", ""]).encode() + body, head=method == "HEAD")
    finally:
        wire.close()


def says_ready(host: str, port: int) -> bool:
    """Whether an instance answers there that it may take traffic."""
    try:
        return ask(port, "GET", "/health/ready", timeout_s=1, host=host).status == 200
    except WireError:
        return False


@dataclass
class Account:
    """One user. `headers()` carry a token that is renewed before it runs out."""

    port: int
    email: str
    password: str
    id: str
    _token: str = field(default="", repr=False)
    _since_s: float = field(default=0.0, repr=False)

    def token(self) -> str:
        if not self._token or time.monotonic() - self._since_s > _RENEW_AFTER_S:
            reply = ask(
                self.port,
                "POST",
                "/api/auth/login",
                json_body={"email": self.email, "password": self.password},
            )
            assert reply.status == 200, reply
            self._token, self._since_s = json.loads(reply.body)["access_token"], time.monotonic()
        return self._token

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token()}"}

    def ask(self, method: str, path: str, json_body: Any = None, **headers: str) -> Reply:
        """One request with the account's token."""
        return ask(self.port, method, path, headers=self.headers() | headers, json_body=json_body)


def new_account(port: int) -> Account:
    """Register a user that no other test has."""
    email = f"user-{uuid.uuid4().hex[:12]}@example.org"
    password = f"correct horse {uuid.uuid4().hex[:8]}"
    reply = ask(
        port,
        "POST",
        "/api/auth/register",
        json_body={"email": email, "password": password, "firstName": "Ada", "lastName": "Byron"},
    )
    assert reply.status == 201, reply
    return Account(port, email, password, json.loads(reply.body)["user"]["id"])
