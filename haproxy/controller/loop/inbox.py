"""Where the threads around the loop leave what has changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from discovery.bell import Bell
from discovery.model import Change, Snapshot
from haproxy.controller.config.model import VerifyKey
from haproxy.controller.consul.agreement import Agreed


@dataclass(frozen=True, slots=True)
class News:
    """What has come in: services with the time of their first change, and the rest where it is new."""

    dirty: dict[str, float]
    snapshot: Snapshot
    pins: dict[str, str] | None
    owners: Agreed | None
    keys: tuple[VerifyKey, ...] | None


class Inbox:
    """What other threads hand to the loop: coalesced, and never waiting for it. Bounded by the number of services."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dirty: dict[str, float] = {}
        self._snapshot = Snapshot()
        self._pins: dict[str, str] | None = None
        self._keys: tuple[VerifyKey, ...] | None = None
        self._owners: Agreed | None = None
        self.wake = Bell()

    def changed(self, changes: Iterable[Change], snapshot: Snapshot) -> None:
        """The view's callback."""
        now = time.monotonic()
        with self._lock:
            self._snapshot = snapshot
            for change in changes:
                self._dirty.setdefault(change.service, now)
        self.wake.ring()

    def pins(self, pins: dict[str, str]) -> None:
        with self._lock:
            self._pins = pins
        self.wake.ring()

    def owners(self, agreed: Agreed) -> None:
        with self._lock:
            self._owners = agreed
        self.wake.ring()

    def keys(self, keys: tuple[VerifyKey, ...]) -> None:
        with self._lock:
            self._keys = keys
        self.wake.ring()

    def take(self) -> News:
        """Everything since the last call."""
        with self._lock:
            news = News(self._dirty, self._snapshot, self._pins, self._owners, self._keys)
            self._dirty, self._pins, self._owners, self._keys = {}, None, None, None
            return news
