"""The in-process layer: a few megabytes of answers, and what is known of their paths."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from cachetools import FIFOCache, LRUCache

from gateway.cache.entry import Entry
from gateway.cache.key import Base, Spec, Variant
from gateway.cache.trust import Changes
from services.kit.stale.stored_form import Change, plain_path, prefixes, short_prefix

MAX_BYTES = 32 * 1024 * 1024
MAX_SPECS = 8192
REST_S = 1.0
# One request looks again for something to store after so long.
PASS_S = 5.0
MAX_MARKS = 4096

# Service and plain path.
Path = tuple[str, str]


@dataclass(slots=True)
class Held:
    """An entry here. `born` and `checked` are points on the monotonic clock: when it was made, and when Redis or an instance was
    asked for it. Until `resting` the service is not asked again, because asking has just failed."""

    entry: Entry
    born: float
    checked: float
    resting: float = 0.0

    def rest(self, now: float) -> None:
        self.resting = now + REST_S


class Memory:
    """Thread-safe. `since` is a place in the sequence of changes: what was begun before a change is not kept after it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._lock = threading.Lock()
        self._max_bytes = max_bytes
        # Each with its size.
        self._held: LRUCache[Variant, tuple[Held, int]] = LRUCache(max_bytes, itemgetter(1))
        self._by_path: dict[Path, set[Variant]] = {}
        # The paths that are held below each prefix, by its hash: of two prefixes with one hash both are forgotten.
        self._below: dict[int, set[Path]] = {}
        # By the base's hash, for bases are as long as clients like. A wrong one leads to a variant that is not there.
        self._specs: FIFOCache[int, Spec] = FIFOCache(MAX_SPECS)
        self._changes = Changes()

    @property
    def bytes(self) -> int:
        return int(self._held.currsize)

    def now(self) -> int:
        """The place in the sequence of changes, for `put`."""
        return self._changes.number

    def get(self, variant: Variant) -> Held | None:
        with self._lock:
            found = self._held.get(variant)
        return found[0] if found is not None else None

    def put(self, variant: Variant, held: Held, since: int) -> bool:
        """Keep an answer that was begun at `since`; False when it has changed since, or is too large."""
        size = held.entry.size + variant.size
        path = _path(variant)
        with self._lock:
            # None may drive out most of the others.
            if size > self._max_bytes // 4 or self._changes.touch([path], since):
                return False
            self._drop(variant)
            while self._held.currsize + size > self._max_bytes:
                self._unlist(self._held.popitem()[0])
            self._held[variant] = held, size
            self._list(path, variant)
        return True

    def drop(self, variant: Variant) -> None:
        with self._lock:
            self._drop(variant)

    def clear(self) -> None:
        """Hold nothing, and know of no path: as a new process does."""
        with self._lock:
            for variant in list(self._held):
                self._drop(variant)
            self._specs.clear()

    def change(self, service: str, change: Change) -> None:
        """Forget what a change covers, and keep out what is being loaded of it."""
        with self._lock:
            self._changes.add(service, change)
            paths: Iterable[Path] = [(service, change.path)]
            if change.prefix:
                paths = self._below.get(hash((service, short_prefix(change.path))), ())
            for variant in [variant for each in paths for variant in self._by_path.get(each, ())]:
                self._drop(variant)

    def unchanged(self, places: Sequence[Path], since: int) -> bool:
        """Whether no change after `since` covers any of these (service, plain path)."""
        with self._lock:
            return not self._changes.touch(places, since)

    def spec(self, base: Base) -> Spec | None:
        """On what the answer depends; None while it has not been seen."""
        with self._lock:
            return self._specs.get(hash(base))

    def learn(self, base: Base, spec: Spec) -> None:
        with self._lock:
            self._specs[hash(base)] = spec

    def _drop(self, variant: Variant) -> None:
        if self._held.pop(variant, None) is not None:
            self._unlist(variant)

    def _list(self, path: Path, variant: Variant) -> None:
        """Have it found by its path, and by all above it."""
        if path not in self._by_path:
            self._by_path[path] = set()
            for place in _places(path):
                self._below.setdefault(place, set()).add(path)
        self._by_path[path].add(variant)

    def _unlist(self, variant: Variant) -> None:
        path = _path(variant)
        others = self._by_path[path]
        others.discard(variant)
        if not others:
            del self._by_path[path]
            for place in _places(path):
                self._below[place].discard(path)
                if not self._below[place]:
                    del self._below[place]


class Passing:
    """Paths that are known to give nothing to store: no request waits for another there, and nothing is looked up.

    Marks last for a while, apart for requests with a token and without: what the ones get says nothing of what the others get.
    Kept by a hash, for names are as long as clients like: two of one hash are passed by together. Thread-safe.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._marks: FIFOCache[int, float] = FIFOCache(MAX_MARKS)

    def __len__(self) -> int:
        return len(self._marks)

    def learn(self, base: Base, headers: Mapping[str, str], stored: bool) -> None:
        """What came for such a request is stored, or is nothing to store."""
        with self._lock:
            if not stored:
                self._marks[_mark(base, headers)] = self._monotonic() + PASS_S
            elif self._marks:
                self._marks.pop(_mark(base, headers), None)

    def clear(self) -> None:
        """No path is known to give nothing."""
        with self._lock:
            self._marks.clear()

    def passes(self, base: Base, headers: Mapping[str, str], *, looks: bool) -> bool:
        """Whether the request is to be passed by. Once the time of a mark is over, one request that is not, and would store what
        it gets (`looks`), finds out for all others; they do not wait for it."""
        if not self._marks:
            return False
        place = _mark(base, headers)
        with self._lock:
            until = self._marks.get(place)
            if until is None:
                return False
            now = self._monotonic()
            if now < until or not looks:
                return True
            self._marks[place] = now + PASS_S
            return False


def _mark(base: Base, headers: Mapping[str, str]) -> int:
    return hash((base, "authorization" in headers))


def _path(variant: Variant) -> Path:
    return variant.base.service, plain_path(variant.base.path)


def _places(path: Path) -> set[int]:
    return {hash((path[0], prefix)) for prefix in prefixes(path[1])}
