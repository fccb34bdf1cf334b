"""Following one key of Consul's KV."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul.api import ConsulApi
from discovery.errors import ConsulError
from discovery.loop import backoff_s
from haproxy.controller.loop.steady import Health, steady

log = structlog.get_logger(__name__)

WAIT_S = 10.0
# A key that changes all the time must not make this thread spin.
_PAUSE_S = 0.1


class KeyWatch:
    """Calls back from a thread of its own with the index of the key's last change (0: there is none) and its value, when they change."""

    def __init__(
        self,
        api: ConsulApi,
        key: str,
        callback: Callable[[int, bytes | None], None],
        health: Health,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._api = api
        self._key = key
        self._callback = callback
        self._clock = clock
        self._index = self._failures = 0
        self._seen: tuple[int, bytes | None] | None = None
        self._loop = steady(key, self._turn, health)

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        self._loop.stop()

    def _turn(self) -> float:
        try:
            answered, modified, value = self._api.kv_entry(self._key, self._index, WAIT_S)
        except ConsulError as error:
            if not self._failures:
                log.warning("key not followed", key=self._key, error=str(error))
            self._failures += 1
            self._index = 0
            return backoff_s(self._failures, self._clock)
        self._failures = 0
        self._index = 0 if answered < self._index else max(answered, 1)
        if (modified, value) != self._seen:
            self._callback(modified, value)
            self._seen = modified, value
        return _PAUSE_S
