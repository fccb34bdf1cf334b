"""The last good answers that services have kept by `@snapshot`, each for the callers that may have it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from discovery.clock import Clock
from gateway.cache.entry import MAX_SKEW_S
from gateway.cache.lru import ByteLru
from gateway.cache.store import Store
from gateway.model import Answer, Headers, Incoming
from services.kit.auth.verifier import Identity
from services.kit.redis_client import Away
from services.kit.stale.stored_form import (
    SnapshotName,
    headers_of,
    plain_path,
    public_key,
    snapshot_name,
    unseal,
)
from services.kit.stale.writer import GONE_MS

# What Redis gave is given again while it is away, for so long: one late answer of Redis opens the circuit for a second. Longer,
# and a subject that has left would not be forgotten here.
HELD_S = 5.0
# Longer than a request and its place in the service's queue take: what was read before a removal is not given after it.
REMOVED_S = GONE_MS / 1000
MAX_HELD_BYTES = 8 * 1024 * 1024


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


class LastGood:
    """Finds them. Thread-safe."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        # What Redis said last: its key there, the sealed answer, when its path was removed, and until when this is used.
        self._held: ByteLru[SnapshotName, tuple[bytes, float, float]] = ByteLru(MAX_HELD_BYTES)

    def find(self, incoming: Incoming) -> Good | None:
        """The youngest snapshot that may answer the request: a public one, or the caller's own. One round trip.

        Its own only if its token proves it, and has at least the scopes of the token that the answer was given to: what the
        caller may see may have become less since.
        """
        identity = incoming.identify() if "authorization" in incoming.headers else None
        path = plain_path(incoming.path)
        names: dict[SnapshotName, Identity | None] = {}
        for owner in (None, identity) if identity is not None else (None,):
            subject = owner.subject if owner is not None else None
            name = snapshot_name(incoming.service, path, incoming.query, subject)
            if name is not None:
                names[name] = owner
        if not names:
            return None
        now = self._clock.time()
        good = [
            each
            for name, (data, removed) in self._fetch(incoming.service, path, list(names)).items()
            if (each := read(name, data, names[name], now, removed)) is not None
        ]
        return min(good, key=lambda each: each.age_s, default=None)

    def forget(self, service: str, path: str) -> None:
        """Delete those of a plain path that are for every caller. Raises Away when Redis has not deleted them."""
        self._forget_here(public_key(service, path))
        self._store.forget_snapshots(service, path)
        # What was read from Redis in between.
        self._forget_here(public_key(service, path))

    def _forget_here(self, key: str) -> None:
        with self._lock:
            for name in self._held:
                if name.key == key:
                    self._held.drop(name)

    def _fetch(
        self, service: str, path: str, names: list[SnapshotName]
    ) -> dict[SnapshotName, tuple[bytes, float]]:
        """What is kept under these names, and when its path was removed."""
        now = self._clock.monotonic()
        try:
            sealed, removed = self._store.snapshots(service, path, names)
        except Away:
            held = {name: each for name in names if (each := self._held.get(name)) and now < each[2]}
            return {name: (data, removed) for name, (data, removed, _) in held.items()}
        found = {name: data for name, data in zip(names, sealed, strict=True) if data is not None}
        with self._lock:
            for name in names:
                self._held.drop(name)
            for name, data in found.items():
                self._held.put(name, (data, removed, now + HELD_S), len(name.whole) + len(data))
        return {name: (data, removed) for name, data in found.items()}


def read(
    name: SnapshotName, data: bytes, identity: Identity | None, now: float, removed: float
) -> Good | None:
    """A sealed snapshot; None when it is none, too old, of before its path was `removed`, or for a caller that may see more."""
    opened = unseal(name.whole, data)
    if opened is None:
        return None
    try:
        return _good(*opened, identity, now, removed)
    except (KeyError, TypeError, ValueError):
        return None


def _good(
    head: Mapping[str, Any], body: bytes, identity: Identity | None, now: float, removed: float
) -> Good | None:
    at = float(head["at"])
    if removed and at < removed + REMOVED_S:
        return None
    age_s = now - at
    scopes = set(head["scopes"])
    if not -MAX_SKEW_S <= age_s < float(head["stale_s"]) or head["status"] != 200:
        return None
    if scopes and (identity is None or not scopes <= identity.scopes):
        return None
    return Good(200, headers_of(head["headers"]), body, max(0.0, age_s))
