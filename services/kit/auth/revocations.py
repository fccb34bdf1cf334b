"""Which accounts' tokens have ended early: those that are deleted, or logged out everywhere. auth keeps the list."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger(__name__)

EVERY_S = 2.0

Fetch = Callable[[], dict[str, Any]]


class Revocations:
    """The list as of `every_s` ago at most, looked at for every token. Safe for threads.

    `fetch` returns `{"revocations": [{"subject", "before", …}]}` or raises: then the last list stays. A token of `subject` that
    was issued at `before` (Unix time in seconds) or earlier is void. The list is short: auth leaves out what has expired anyway.
    """

    def __init__(
        self, fetch: Fetch, *, every_s: float = EVERY_S, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._fetch = fetch
        self._every_s = every_s
        self._sleep = sleep
        self._before: dict[str, int] = {}
        self._failing = False
        self._started = False

    def start(self) -> None:
        """Follow the list from now on, in a daemon thread of this process. A second call changes nothing."""
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="revocations", daemon=True).start()

    def refresh(self) -> None:
        """Fetch now. Never raises; a failure is logged once until it is over."""
        try:
            entries = self._fetch()["revocations"]
            self._before = {str(entry["subject"]): int(entry["before"]) for entry in entries}
            self._failing = False
        except Exception as error:  # the thread must outlive whatever it meets
            if not self._failing:
                log.warning("revocations not fetched", error=type(error).__name__, reason=str(error)[:200])
            self._failing = True

    def void(self, subject: str, issued_at: float) -> bool:
        """Whether a token of this subject, issued then, has been revoked."""
        before = self._before.get(subject)
        return before is not None and issued_at <= before

    def _run(self) -> None:
        while True:
            self.refresh()
            self._sleep(self._every_s)
