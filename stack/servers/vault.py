"""The stack's secrets: made on first start, one file each, mode 600, in a folder of mode 700."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from haproxy.controller.config.files import write_atomically

REDIS_OPERATOR = "operator"
"""The user of Redis that makes the others. The stack alone has its password."""


def write_private(path: Path, text: str) -> None:
    """Replace the file atomically; only the owner can read it at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomically(path, text.encode(), mode=0o600)


class Vault:
    """Secrets under one folder. Each `*_file` makes its secret when there is none and returns the path."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self) -> None:
        """Make the folder, or take back what group and others may do in it."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)

    def consul_token_file(self, name: str) -> Path:
        """The Consul token of a service, or of `master`, `agent`, `controller`, `operator`: a UUID."""
        return self._made(self.root / "consul" / f"{name}.token", lambda: str(uuid.uuid4()))

    def consul_token(self, name: str) -> str:
        return self.consul_token_file(name).read_text().strip()

    def forget_consul_token(self, name: str) -> None:
        """Throw the token away. None there is no error, also where nothing may be written."""
        path = self.root / "consul" / f"{name}.token"
        if path.exists():
            path.unlink(missing_ok=True)

    def consul_names(self) -> list[str]:
        """Every name that has a Consul token, sorted."""
        return sorted(path.stem for path in (self.root / "consul").glob("*.token"))

    def gossip_key(self) -> str:
        """Consul's: 32 random bytes in base64."""
        made = self._made(
            self.root / "consul" / "gossip.key", lambda: base64.b64encode(os.urandom(32)).decode()
        )
        return made.read_text().strip()

    def redis_password_file(self, name: str) -> Path:
        """The password of a service, or of `REDIS_OPERATOR`, for both Redis servers."""
        return self._made(self.root / "redis" / f"{name}.password", lambda: secrets.token_urlsafe(32))

    def redis_password(self, name: str) -> str:
        return self.redis_password_file(name).read_text().strip()

    def rabbitmq_password(self, name: str) -> str:
        """The password of a service, or of the operator."""
        made = self._made(self.root / "rabbitmq" / f"{name}.password", lambda: secrets.token_urlsafe(32))
        return made.read_text().strip()

    def rabbitmq_passwords(self) -> dict[str, str]:
        """Of every name that has one."""
        found = sorted(path.stem for path in (self.root / "rabbitmq").glob("*.password"))
        return {name: self.rabbitmq_password(name) for name in found}

    def events_url_file(self, service: str, url: str) -> Path:
        """A URL of RabbitMQ that holds the service's password."""
        path = self.root / "rabbitmq" / f"{service}.url"
        write_private(path, url + "\n")
        return path

    def database_password(self, name: str) -> str:
        """The password of a service's role in PostgreSQL, or of `postgres`, which makes the others."""
        made = self._made(self.root / "postgres" / f"{name}.password", lambda: secrets.token_urlsafe(32))
        return made.read_text().strip()

    def redis_names(self) -> list[str]:
        """Every service that has a Redis password, sorted."""
        names = {path.stem for path in (self.root / "redis").glob("*.password")}
        return sorted(names - {REDIS_OPERATOR})

    def key_encryption_file(self) -> Path:
        """What auth encrypts its signing keys with: a Fernet key."""
        return self._made(self.root / "auth.kek", lambda: base64.urlsafe_b64encode(os.urandom(32)).decode())

    def vapid_key_file(self) -> Path:
        """By which push services know the notifications of this installation: a private key on P-256, 32 bytes in base64url."""

        def make() -> str:
            # The order of the curve: a key is a number under it, and above zero.
            order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
            number = 1 + secrets.randbelow(order - 1)
            return base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()

        return self._made(self.root / "vapid" / "notifications.key", make)

    def service_secret_file(self, service: str) -> Path:
        """What a service shows auth to get a token of its own."""
        return self._made(self.root / "services" / f"{service}.secret", lambda: secrets.token_urlsafe(32))

    def write_clients(self, services: Iterable[str]) -> Path:
        """What auth knows of those secrets: service name → SHA-256 in hex, as JSON. Services known before stay."""
        path = self.root / "auth-clients.json"
        known = {file.stem for file in (self.root / "services").glob("*.secret")} | set(services)
        digests = {
            name: hashlib.sha256(self.service_secret_file(name).read_text().strip().encode()).hexdigest()
            for name in sorted(known)
        }
        text = json.dumps(digests, indent=2) + "\n"
        if not path.exists() or path.read_text() != text:
            write_private(path, text)
        return path

    @property
    def admin_file(self) -> Path:
        """The demonstration administrator, JSON `{"email", "password"}`; made by `seed`."""
        return self.root / "admin.json"

    def _made(self, path: Path, make: Callable[[], str]) -> Path:
        if not path.exists() or not path.read_text().strip():
            write_private(path, make() + "\n")
        return path
