"""One stored answer: its form in Redis, and what the client gets of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from gateway.cache.rules import Lifetime, client_has
from gateway.cache.trust import is_of_the_future
from gateway.model import Answer, Headers, first
from services.kit.stale.stored_form import headers_of, seal, unseal

State = Literal["HIT", "MISS", "STALE", "BYPASS"]

_ABOUT_BODY = frozenset({"content-length", "content-type", "content-encoding", "content-language"})


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
        return first(self.headers, name)

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
    if is_of_the_future(born, now) or min(fresh_s, swr_s, sie_s) < 0:
        return None
    return Entry(status, headers_of(head["headers"]), body, born, Lifetime(fresh_s, swr_s, sie_s), version)


def give(asked: Mapping[str, str], method: str, entry: Entry, state: State, age_s: float) -> Answer:
    """A stored answer, or 304 where the client has it already."""
    own: Headers = [("Age", str(max(0, int(age_s)))), ("X-Cache", state)]
    if state == "STALE":
        own.append(("X-Stale-Age", str(max(0, int(age_s - entry.lifetime.fresh_s)))))
    if entry.status == 200 and client_has(asked, entry.headers):
        kept = [pair for pair in entry.headers if pair[0].lower() not in _ABOUT_BODY]
        return Answer(304, [*kept, *own], b"", source="cache")
    headers = [*entry.headers, ("Content-Length", str(len(entry.body))), *own]
    return Answer(entry.status, headers, b"" if method == "HEAD" else entry.body, source="cache")


def pass_on(asked: Mapping[str, str], answer: Answer, state: State) -> Answer:
    """An answer that has just come, or 304 where the client has it already: its conditions were not passed on."""
    headers = [pair for pair in answer.headers if pair[0].lower() not in ("x-cache", "x-stale-age")]
    headers.append(("X-Cache", state))
    if answer.status == 200 and client_has(asked, headers):
        answer.close()
        headers = [pair for pair in headers if pair[0].lower() not in _ABOUT_BODY]
        return replace(answer, status=304, headers=headers, body=b"")
    return replace(answer, headers=headers)
