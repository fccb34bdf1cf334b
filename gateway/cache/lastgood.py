"""The last good answers that services have kept by `@snapshot`, for whom they may be given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.cache.circuit import Away
from gateway.cache.entry import MAX_SKEW_S
from gateway.cache.store import Store
from gateway.model import Answer, Headers, Incoming
from services.kit.answers import SnapshotName, headers_of, plain_path, snapshot_name, unseal
from services.kit.auth import Identity


@dataclass(frozen=True, slots=True)
class Good:
    """A last good answer. `age_s` since it was given by the service."""

    status: int
    headers: Headers
    body: bytes
    age_s: float

    def answer(self, method: str) -> Answer:
        age = str(int(self.age_s))
        headers = [
            *self.headers,
            ("Content-Length", str(len(self.body))),
            ("Age", age),
            ("X-Cache", "STALE"),
            ("X-Stale-Age", age),
        ]
        return Answer(self.status, headers, b"" if method == "HEAD" else self.body, source="snapshot")


def find(store: Store, incoming: Incoming, now: float) -> Good | None:
    """The youngest snapshot that may answer the request: a public one, or the caller's own. One round trip.

    His own only if his token proves him, and has at least the scopes of the token that the answer was given to: what he may
    see may have become less since.
    """
    identity = incoming.identify() if "authorization" in incoming.headers else None
    path = plain_path(incoming.path)
    wanted: list[tuple[SnapshotName, Identity | None]] = []
    for who in (None, identity) if identity is not None else (None,):
        subject = who.subject if who is not None else None
        name = snapshot_name(incoming.service, path, incoming.query, subject)
        if name is not None:
            wanted.append((name, who))
    if not wanted:
        return None
    try:
        found = store.snapshots([name for name, _ in wanted])
    except Away:
        return None
    good = [
        each
        for (name, who), data in zip(wanted, found, strict=True)
        if data is not None and (each := read(name, data, who, now)) is not None
    ]
    return min(good, key=lambda each: each.age_s, default=None)


def read(name: SnapshotName, data: bytes, identity: Identity | None, now: float) -> Good | None:
    """A sealed snapshot; None when it is none, too old, or for somebody who may see more."""
    opened = unseal(name.whole, data)
    if opened is None:
        return None
    try:
        return _good(*opened, identity, now)
    except (KeyError, TypeError, ValueError):
        return None


def _good(head: Mapping[str, Any], body: bytes, identity: Identity | None, now: float) -> Good | None:
    age_s = now - float(head["at"])
    scopes = set(head["scopes"])
    if not -MAX_SKEW_S <= age_s < float(head["stale_s"]) or head["status"] != 200:
        return None
    if scopes and (identity is None or not scopes <= identity.scopes):
        return None
    return Good(200, headers_of(head["headers"]), body, max(0.0, age_s))
