"""Where the other threads leave changes for the loop."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from discovery.bell import Bell
from discovery.model import Change, Snapshot
from haproxy.controller.config.model import VerifyKey
from haproxy.controller.wanted.ownership import Agreed


@dataclass(slots=True)
class News:
    """What has come in: services with the time of their first change, and the rest where it is new."""

    snapshot: Snapshot = field(default_factory=Snapshot)
    dirty: dict[str, float] = field(default_factory=dict)
    pins: Agreed | None = None
    owners: Agreed | None = None
    keys: tuple[VerifyKey, ...] | None = None


class Inbox:
    """What other threads hand to the loop: coalesced, and never waiting for it. Bounded by the number of services."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news = News()
        self.wake = Bell()

    def changed(self, changes: Iterable[Change], snapshot: Snapshot) -> None:
        """The view's callback."""
        now = time.monotonic()
        with self._open() as news:
            news.snapshot = snapshot
            for change in changes:
                news.dirty.setdefault(change.service, now)

    def pins(self, pins: Agreed) -> None:
        with self._open() as news:
            news.pins = pins

    def owners(self, agreed: Agreed) -> None:
        with self._open() as news:
            news.owners = agreed

    def keys(self, keys: tuple[VerifyKey, ...]) -> None:
        with self._open() as news:
            news.keys = keys

    def take(self) -> News:
        """Everything since the last call."""
        with self._lock:
            news, self._news = self._news, News(self._news.snapshot)
            return news

    @contextlib.contextmanager
    def _open(self) -> Iterator[News]:
        with self._lock:
            yield self._news
        self.wake.ring()
