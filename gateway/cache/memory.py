"""The in-process layer: a few megabytes of answers, least recently used first out, and what is known of their paths."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.cache.entry import Entry
from gateway.cache.key import Base, Spec, Variant
from services.kit.stale.stored_form import Change, plain_path, prefixes, short_prefix

MAX_BYTES = 32 * 1024 * 1024
MAX_SPECS = 8192
# So many changes are looked through before an answer is kept that was asked for before them.
REMEMBERED = 4096
REST_S = 1.0

# Service and plain path.
Path = tuple[str, str]


@dataclass(slots=True)
class Held:
    """An entry here. `born` and `checked` are points on the monotonic clock: when it was made, and when Redis or an instance was
    asked for it. Until `resting` nobody is asked anew, for asking has just failed."""

    entry: Entry
    born: float
    checked: float
    size: int = 0
    resting: float = 0.0

    def rest(self, now: float) -> None:
        self.resting = now + REST_S


class Memory:
    """Thread-safe. `since` is a place in the sequence of changes: what was begun before a change is not kept after it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[Variant, Held] = OrderedDict()
        self._by_path: dict[Path, set[Variant]] = {}
        # The paths that are held below each prefix, by its hash: of two prefixes with one hash both are forgotten.
        self._below: dict[int, set[Path]] = {}
        # By the base's hash, for bases are as long as clients like. A wrong one leads to a variant that is not there.
        self._specs: OrderedDict[int, Spec] = OrderedDict()
        self._bytes = 0
        self._sequence = 0
        self._changes: deque[tuple[int, str, Change]] = deque(maxlen=REMEMBERED)

    @property
    def bytes(self) -> int:
        return self._bytes

    def now(self) -> int:
        """The place in the sequence of changes, for `put`."""
        return self._sequence

    def get(self, variant: Variant) -> Held | None:
        held = self._held.get(variant)
        if held is not None:
            try:
                self._held.move_to_end(variant)
            except KeyError:  # another thread took it away in between
                return None
        return held

    def put(self, variant: Variant, held: Held, since: int) -> bool:
        """Keep an answer that was begun at `since`; False when it has changed since, or is too large."""
        size = held.size = held.entry.size + variant.size
        path = (variant.base.service, plain_path(variant.base.path))
        with self._lock:
            if size > self._max_bytes // 4 or self._changed(*path, since):
                return False
            self._drop(variant)
            self._held[variant] = held
            self._list(path, variant)
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._held)))
        return True

    def drop(self, variant: Variant) -> None:
        with self._lock:
            self._drop(variant)

    def change(self, service: str, change: Change) -> None:
        """Forget what a change covers, and keep out what is being loaded of it."""
        with self._lock:
            self._sequence += 1
            self._changes.append((self._sequence, service, change))
            paths: Iterable[Path] = [(service, change.path)]
            if change.prefix:
                paths = self._below.get(hash((service, short_prefix(change.path))), ())
            for variant in [variant for each in paths for variant in self._by_path.get(each, ())]:
                self._drop(variant)

    def unchanged(self, places: Sequence[tuple[str, str]], since: int) -> bool:
        """Whether no change after `since` covers any of these (service, plain path)."""
        if since == self._sequence:
            return True
        with self._lock:
            return not any(self._changed(service, path, since) for service, path in places)

    def spec(self, base: Base) -> Spec | None:
        """On what the answer depends; None while it has not been seen."""
        return self._specs.get(hash(base))

    def learn(self, base: Base, spec: Spec) -> None:
        place = hash(base)
        with self._lock:
            self._specs[place] = spec
            self._specs.move_to_end(place)
            while len(self._specs) > MAX_SPECS:
                self._specs.popitem(last=False)

    def _changed(self, service: str, path: str, since: int) -> bool:
        if self._sequence - since > len(self._changes):
            return True
        for number, whose, change in reversed(self._changes):
            if number <= since:
                return False
            if whose == service and change.covers(path):
                return True
        return False

    def _drop(self, variant: Variant) -> None:
        held = self._held.pop(variant, None)
        if held is None:
            return
        self._bytes -= held.size
        path = (variant.base.service, plain_path(variant.base.path))
        others = self._by_path[path]
        others.discard(variant)
        if not others:
            del self._by_path[path]
            for place in _places(path):
                self._below[place].discard(path)
                if not self._below[place]:
                    del self._below[place]

    def _list(self, path: Path, variant: Variant) -> None:
        """Have it found by its path, and by all above it."""
        if path not in self._by_path:
            self._by_path[path] = set()
            for place in _places(path):
                self._below.setdefault(place, set()).add(path)
        self._by_path[path].add(variant)


def _places(path: Path) -> set[int]:
    return {hash((path[0], prefix)) for prefix in prefixes(path[1])}
