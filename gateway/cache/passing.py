"""Which paths are known to give nothing that may be stored: nobody waits there for anybody, and nothing is looked up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.cache.freshness import CREDENTIALS
from gateway.cache.keys import Base

# After it one request looks again.
PASS_S = 5.0
MAX_MARKS = 4096


class Passing:
    """Marks for a while; one for each kind of sender: what one sort of credentials gets says nothing of what another gets."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._marks: dict[tuple[Base, tuple[bool, ...]], float] = {}

    def mark(self, base: Base, headers: Mapping[str, str]) -> None:
        if len(self._marks) >= MAX_MARKS:
            self._marks = {}
        self._marks[_key(base, headers)] = self._monotonic() + PASS_S

    def passes(self, base: Base, headers: Mapping[str, str]) -> bool:
        if not self._marks:
            return False
        until = self._marks.get(_key(base, headers))
        return until is not None and self._monotonic() < until


def _key(base: Base, headers: Mapping[str, str]) -> tuple[Base, tuple[bool, ...]]:
    return base, tuple(name in headers for name in CREDENTIALS)
