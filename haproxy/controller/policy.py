"""Following the operator's pins in KV `edge/policy/owners`."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul_api import ConsulApi
from discovery.errors import ConsulError, ContractError
from discovery.watch import backoff_s
from haproxy.controller.metrics import Metrics
from haproxy.controller.owners import parse_pins

log = structlog.get_logger(__name__)

KEY = "edge/policy/owners"
WAIT_S = 10.0
# A key that changes all the time must not make this thread spin.
_PAUSE_S = 0.1


class PinWatch:
    """Calls back with the pins when they change; a document that cannot be read leaves the last good pins."""

    def __init__(
        self,
        api: ConsulApi,
        callback: Callable[[dict[str, str]], None],
        metrics: Metrics,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._api = api
        self._callback = callback
        self._metrics = metrics
        self._clock = clock
        self._value: bytes | None | object = self
        self._stopped = threading.Event()

    def read(self) -> dict[str, str] | None:
        """The pins now; None where they cannot be read, which is told."""
        try:
            return self._parse(self._api.kv_get(KEY))
        except ConsulError as error:
            log.warning("pins not read", error=str(error))
            return None

    def start(self) -> None:
        threading.Thread(target=self._run, name="pins", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _parse(self, value: bytes | None) -> dict[str, str] | None:
        try:
            return parse_pins(value)
        except ContractError as error:
            self._metrics.errors.labels("pins").inc()
            log.error("pins refused, the last good ones stand", key=KEY, error=str(error))
            return None

    def _run(self) -> None:
        index = failures = 0
        while not self._stopped.is_set():
            try:
                answered, value = self._api.kv_watch(KEY, index, WAIT_S)
            except ConsulError as error:
                if not failures:
                    log.warning("pins not followed", error=str(error))
                failures += 1
                index = 0
                self._stopped.wait(backoff_s(failures, self._clock))
                continue
            failures = 0
            index = 0 if answered < index else max(answered, 1)
            if value != self._value:
                self._value = value
                pins = self._parse(value)
                if pins is not None:
                    self._callback(pins)
            self._stopped.wait(_PAUSE_S)
