"""The last good answers that services have kept by `@stale_if_error`, each for the callers that may have it."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from cachetools import LRUCache

from discovery.clock import Clock
from gateway.cache.store import Store
from gateway.cache.trust import age_of_last_good
from gateway.model import Answer, Headers, Incoming
from services.kit.auth.verifier import Identity
from services.kit.redis_client import Away
from services.kit.stale.stored_form import (
    StaleName,
    headers_of,
    plain_path,
    public_key,
    stale_name,
    unseal,
)

# What Redis gave is given again while it is away, for so long: one late answer of Redis opens the circuit for a second. Longer,
# and a subject that has left would not be forgotten here.
HELD_S = 5.0
MAX_HELD_BYTES = 8 * 1024 * 1024
# A service keeps no answer under a longer name.
NAME_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Good:
    """A last good answer. `age_s` since it was given by the service."""

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
        return Answer(200, headers, b"" if method == "HEAD" else self.body, source="stale")


class LastGood:
    """Finds them. Thread-safe."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        # What Redis said last: the sealed answer, when its path was removed, and until when this is used.
        self._held: LRUCache[StaleName, tuple[bytes, float, float]] = LRUCache(
            MAX_HELD_BYTES, lambda each: len(each[0]) + NAME_BYTES
        )

    def find(self, incoming: Incoming) -> Good | None:
        """The youngest stored answer that may answer the request: a public one, or the caller's own. One round trip.

        Its own only if its token proves it, and has at least the scopes of the token that the answer was given to: what the
        caller may see may have become less since.
        """
        identity = incoming.identify() if "authorization" in incoming.headers else None
        path = plain_path(incoming.path)
        names: dict[StaleName, Identity | None] = {}
        for owner in (None, identity) if identity is not None else (None,):
            subject = owner.subject if owner is not None else None
            name = stale_name(incoming.service, path, incoming.query, subject)
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
        self._store.forget_stale(service, path)
        # What was read from Redis in between.
        self._forget_here(public_key(service, path))

    def _forget_here(self, key: str) -> None:
        with self._lock:
            for name in [each for each in self._held if each.key == key]:
                del self._held[name]

    def _fetch(self, service: str, path: str, names: list[StaleName]) -> dict[StaleName, tuple[bytes, float]]:
        """What is kept under these names, and when its path was removed."""
        now = self._clock.monotonic()
        try:
            sealed, removed = self._store.stale(service, path, names)
        except Away:
            with self._lock:
                held = {name: each for name in names if (each := self._held.get(name)) and now < each[2]}
            return {name: (data, removed) for name, (data, removed, _) in held.items()}
        found = {name: data for name, data in zip(names, sealed, strict=True) if data is not None}
        with self._lock:
            for name in names:
                self._held.pop(name, None)
            self._held.update({name: (data, removed, now + HELD_S) for name, data in found.items()})
        return {name: (data, removed) for name, data in found.items()}


def read(name: StaleName, data: bytes, identity: Identity | None, now: float, removed: float) -> Good | None:
    """The answer that is sealed; None when it is damaged, or may not be given to this caller now: see `age_of_last_good`."""
    opened = unseal(name.whole, data)
    if opened is None:
        return None
    head, body = opened
    try:
        age_s = age_of_last_good(head, identity, now, removed)
        return Good(headers_of(head["headers"]), body, age_s) if age_s is not None else None
    except (KeyError, TypeError, ValueError):
        return None
