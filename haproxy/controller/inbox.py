"""Where the threads around the loop leave what has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from discovery.model import Change, Snapshot
from haproxy.controller.model import VerifyKey


class Inbox:
    """What other threads hand to the loop: coalesced, and never waiting for it. Bounded by the number of services."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dirty: dict[str, float] = {}
        self._snapshot = Snapshot()
        self._pins: dict[str, str] | None = None
        self._keys: tuple[VerifyKey, ...] | None = None
        self.wake = threading.Event()

    def changed(self, changes: Iterable[Change], snapshot: Snapshot) -> None:
        """The view's callback."""
        now = time.monotonic()
        with self._lock:
            self._snapshot = snapshot
            for change in changes:
                self._dirty.setdefault(change.service, now)
        self.wake.set()

    def pins(self, pins: dict[str, str]) -> None:
        with self._lock:
            self._pins = pins
        self.wake.set()

    def keys(self, keys: tuple[VerifyKey, ...]) -> None:
        with self._lock:
            self._keys = keys
        self.wake.set()

    def take(
        self,
    ) -> tuple[
        dict[str, float],
        Snapshot,
        dict[str, str] | None,
        tuple[VerifyKey, ...] | None,
    ]:
        """Everything since the last call: services with the time of their first change, pins, keys."""
        with self._lock:
            self.wake.clear()
            dirty, self._dirty = self._dirty, {}
            pins, self._pins = self._pins, None
            keys, self._keys = self._keys, None
            return dirty, self._snapshot, pins, keys
