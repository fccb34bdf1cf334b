"""The services that may ask for a token of their own: `AUTH_CLIENTS_FILE`, JSON {service name: SHA-256 of its secret in hex}."""

from __future__ import annotations

import hmac
import json
import re
import threading
from pathlib import Path

import structlog

from services.auth.grants import digest

log = structlog.get_logger(__name__)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
NOBODY = "0" * 64


class ClientsError(Exception):
    """The file is not JSON of the documented shape."""


def parse_clients(text: str) -> dict[str, str]:
    """{name: hash}, every entry checked. Raises ClientsError naming the first bad one, never its value."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ClientsError(f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ClientsError("not a JSON object")
    for name, hashed in raw.items():
        if not _NAME.fullmatch(name) or not isinstance(hashed, str) or not _SHA256.fullmatch(hashed):
            raise ClientsError(f"{name!r}: wants a service name and 64 hexadecimal digits")
    return raw


class Clients:
    """Follows the file: a service that is added gets in without a restart, one taken out stays out. Thread-safe.

    A file that has become unreadable or malformed leaves the last good state, and says so once per change.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._clients: dict[str, str] = {}

    def verify(self, name: str, secret: str) -> bool:
        """Whether this is the service's secret. An unknown name takes as long as a wrong secret."""
        expected = self._current().get(name)
        return hmac.compare_digest(expected or NOBODY, digest(secret)) and expected is not None

    def _current(self) -> dict[str, str]:
        if self._path is None:
            return self._clients
        with self._lock:
            try:
                stat = self._path.stat()
                seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
                if seen != self._seen:
                    self._seen = seen
                    self._clients = parse_clients(self._path.read_text())
                    log.info("service clients read", clients=len(self._clients))
            except (OSError, ClientsError) as error:
                log.warning("service clients not read, the last ones stand", reason=str(error))
            return self._clients
