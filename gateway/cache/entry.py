"""One stored answer, and its form in Redis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.cache.rules import Lifetime
from gateway.model import Headers
from services.kit.stale.stored_form import headers_of, seal, unseal

# A clock may be this much ahead of another's.
MAX_SKEW_S = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """`born` is when an instance made it (Unix time; before it was asked, so that it is never thought younger than it is).

    `version` names the state of the paths' changes that it was loaded in; empty while Redis was away.
    """

    status: int
    headers: Headers
    body: bytes
    born: float
    lifetime: Lifetime
    version: str = ""

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def size(self) -> int:
        """Bytes of memory, roughly."""
        return len(self.body) + sum(len(name) + len(value) + 150 for name, value in self.headers) + 1000


def pack(name: str, entry: Entry) -> bytes:
    """The entry as bytes that can be read back under the same name only."""
    life = entry.lifetime
    head = {
        "status": entry.status,
        "headers": entry.headers,
        "born": entry.born,
        "life": [life.fresh_s, life.swr_s, life.sie_s],
        "version": entry.version,
    }
    return seal(name, head, entry.body)


def unpack(name: str, data: bytes, now: float) -> Entry | None:
    """What `pack` made; None for anything else, and for what comes from the future."""
    opened = unseal(name, data)
    if opened is None:
        return None
    try:
        return _entry(*opened, now)
    except (KeyError, TypeError, ValueError):
        return None


def _entry(head: Mapping[str, Any], body: bytes, now: float) -> Entry | None:
    fresh_s, swr_s, sie_s = map(float, head["life"])
    status, born, version = head["status"], float(head["born"]), head["version"]
    if not isinstance(status, int) or not 200 <= status <= 599 or not isinstance(version, str):
        return None
    if born > now + MAX_SKEW_S or min(fresh_s, swr_s, sie_s) < 0:
        return None
    return Entry(status, headers_of(head["headers"]), body, born, Lifetime(fresh_s, swr_s, sie_s), version)
