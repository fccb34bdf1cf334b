"""Following the operator's pins in KV `edge/policy/owners`."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from discovery.consul.api import ConsulApi
from discovery.errors import ConsulError, ContractError
from haproxy.controller.consul.keywatch import KeyWatch
from haproxy.controller.loop.steady import Health
from haproxy.controller.metrics import Metrics
from haproxy.controller.wanted.ownership import parse_pins

log = structlog.get_logger(__name__)

KEY = "edge/policy/owners"


class PinWatch:
    """Calls back with the pins when they change; a document that cannot be read leaves the last good pins."""

    def __init__(
        self, api: ConsulApi, callback: Callable[[dict[str, str]], None], metrics: Metrics, health: Health
    ) -> None:
        self._api = api
        self._callback = callback
        self._metrics = metrics
        self._watch = KeyWatch(api, KEY, self._changed, health)
        self.start, self.stop = self._watch.start, self._watch.stop

    def read(self) -> dict[str, str] | None:
        """The pins now; None where they cannot be read, which is told."""
        try:
            return self._parse(self._api.kv_get(KEY))
        except ConsulError as error:
            log.warning("pins not read", error=str(error))
            return None

    def _changed(self, modified: int, value: bytes | None) -> None:
        pins = self._parse(value)
        if pins is not None:
            self._callback(pins)

    def _parse(self, value: bytes | None) -> dict[str, str] | None:
        try:
            return parse_pins(value)
        except ContractError as error:
            self._metrics.errors.labels("pins").inc()
            log.error("pins refused, the last good ones stand", key=KEY, error=str(error))
            return None
