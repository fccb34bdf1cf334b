"""The last good answers that services have kept by `@snapshot`, for whom they may be given."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from discovery.clock import Clock
from gateway.cache.entry import MAX_SKEW_S
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

# What Redis gave is given again while it is away, for so long: one late answer of Redis closes it for a second. Longer, and
# who has left would not be forgotten here.
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
        self._held = Held(clock)

    def find(self, incoming: Incoming) -> Good | None:
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
        now = self._clock.time()
        sealed = self._sealed(incoming.service, path, [name for name, _ in wanted])
        good = [
            each
            for (name, who), (data, removed) in zip(wanted, sealed, strict=True)
            if data is not None and (each := read(name, data, who, now, removed)) is not None
        ]
        return min(good, key=lambda each: each.age_s, default=None)

    def forget(self, service: str, path: str) -> None:
        """Delete those of a plain path that are for everybody. Raises Away when Redis could not be told."""
        self._held.forget(public_key(service, path))
        self._store.forget_snapshots(service, path)
        # What was read from Redis in between.
        self._held.forget(public_key(service, path))

    def _sealed(
        self, service: str, path: str, names: Sequence[SnapshotName]
    ) -> list[tuple[bytes | None, float]]:
        """What is kept under each name, and when its path was removed."""
        try:
            found, removed = self._store.snapshots(service, path, names)
        except Away:
            return [self._held.get(name) for name in names]
        for name, data in zip(names, found, strict=True):
            self._held.put(name, data, removed)
        return [(data, removed) for data in found]


class Held:
    """What Redis said last, for `HELD_S`, least recently said first out. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: OrderedDict[str, tuple[str, bytes, float, float]] = OrderedDict()  # by the whole name
        self._bytes = 0

    def get(self, name: SnapshotName) -> tuple[bytes | None, float]:
        _, data, removed, until = self._held.get(name.whole, ("", None, 0.0, 0.0))
        return (data, removed) if self._clock.monotonic() < until else (None, 0.0)

    def put(self, name: SnapshotName, data: bytes | None, removed: float) -> None:
        """Redis has just said this of the name; None: that there is nothing."""
        with self._lock:
            self._drop(name.whole)
            if data is None:
                return
            self._held[name.whole] = (name.key, data, removed, self._clock.monotonic() + HELD_S)
            self._bytes += len(name.whole) + len(data)
            while self._bytes > MAX_HELD_BYTES:
                self._drop(next(iter(self._held)))

    def forget(self, key: str) -> None:
        """All under this key of Redis."""
        with self._lock:
            for whole in [whole for whole, (whose, *_) in self._held.items() if whose == key]:
                self._drop(whole)

    def _drop(self, whole: str) -> None:
        held = self._held.pop(whole, None)
        if held is not None:
            self._bytes -= len(whole) + len(held[1])


def read(
    name: SnapshotName, data: bytes, identity: Identity | None, now: float, removed: float
) -> Good | None:
    """A sealed snapshot; None when it is none, too old, of before its path was `removed`, or for somebody who may see more."""
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
