"""The in-process layer: a few megabytes of answers, least recently used first out, and what is known of their paths."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.cache.entry import Entry
from gateway.cache.keys import Base, Spec, Variant
from services.kit.answers import Change, plain_path

MAX_BYTES = 32 * 1024 * 1024
MAX_SPECS = 8192
# So many changes are looked through before an answer is kept that was asked for before them.
REMEMBERED = 4096
REST_S = 1.0


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
        self._by_path: dict[tuple[str, str], set[Variant]] = {}
        self._specs: OrderedDict[Base, Spec] = OrderedDict()
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
            self._by_path.setdefault(path, set()).add(variant)
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
            if not change.prefix:
                found = list(self._by_path.get((service, change.path), ()))
            else:
                paths = [each for each in self._by_path if each[0] == service and change.covers(each[1])]
                found = [variant for each in paths for variant in self._by_path[each]]
            for variant in found:
                self._drop(variant)

    def unchanged(self, places: Sequence[tuple[str, str]], since: int) -> bool:
        """Whether no change after `since` covers any of these (service, plain path)."""
        if since == self._sequence:
            return True
        with self._lock:
            return not any(self._changed(service, path, since) for service, path in places)

    def spec(self, base: Base) -> Spec | None:
        return self._specs.get(base)

    def learn(self, base: Base, spec: Spec, guess: Spec) -> None:
        """Remember on what the answer depends, where it is not what is guessed anyway."""
        with self._lock:
            if spec == guess:
                self._specs.pop(base, None)
                return
            self._specs[base] = spec
            self._specs.move_to_end(base)
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
        others = self._by_path.get(path)
        if others is not None:
            others.discard(variant)
            if not others:
                del self._by_path[path]
