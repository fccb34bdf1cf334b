"""A mapping bounded by bytes: the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteLru(Generic[K, V]):
    """`get` is thread-safe; everything else needs the lock of the owner. `dropped` hears of all that leaves."""

    def __init__(self, max_bytes: int, dropped: Callable[[K], object] = lambda _: None) -> None:
        self._max_bytes = max_bytes
        self._dropped = dropped
        self._held: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._held))

    def fits(self, size: int) -> bool:
        """Whether one value may be so large: none may drive out most of the others."""
        return size <= self._max_bytes // 4

    def get(self, key: K) -> V | None:
        found = self._held.get(key)
        if found is None:
            return None
        try:
            self._held.move_to_end(key)
        except KeyError:  # another thread took it away in between
            return None
        return found[0]

    def put(self, key: K, value: V, size: int) -> None:
        self.drop(key)
        self._held[key] = value, size
        self.bytes += size
        while self.bytes > self._max_bytes:
            self.drop(next(iter(self._held)))

    def drop(self, key: K) -> None:
        found = self._held.pop(key, None)
        if found is not None:
            self.bytes -= found[1]
            self._dropped(key)
