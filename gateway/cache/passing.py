"""Which paths are known to give nothing that may be stored: nobody waits there for anybody, and nothing is looked up."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

from gateway.cache.key import Base

# After it one request looks again.
PASS_S = 5.0
MAX_MARKS = 4096


class Passing:
    """Marks for a while, apart for requests with a token and without: what the ones get says nothing of what the others get.

    Kept by a hash, for names are as long as clients like: two of one hash are passed by together. Thread-safe.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._marks: OrderedDict[int, float] = OrderedDict()

    def mark(self, base: Base, headers: Mapping[str, str]) -> None:
        place = _place(base, headers)
        with self._lock:
            self._marks[place] = self._monotonic() + PASS_S
            self._marks.move_to_end(place)
            while len(self._marks) > MAX_MARKS:
                self._marks.popitem(last=False)

    def clear(self, base: Base, headers: Mapping[str, str]) -> None:
        """There is something to be stored after all."""
        if self._marks:
            with self._lock:
                self._marks.pop(_place(base, headers), None)

    def passes(self, base: Base, headers: Mapping[str, str], *, looks: bool) -> bool:
        """Whether the request is to be passed by. Once the time of a mark is over, one that is not, and would store what it
        gets (`looks`), finds out for all others; they do not wait for it."""
        if not self._marks:
            return False
        place = _place(base, headers)
        with self._lock:
            until = self._marks.get(place)
            if until is None:
                return False
            now = self._monotonic()
            if now < until or not looks:
                return True
            self._marks[place] = now + PASS_S
            return False


def _place(base: Base, headers: Mapping[str, str]) -> int:
    return hash((base, "authorization" in headers))
