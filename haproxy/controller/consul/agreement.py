"""The owners that all edges have agreed on: KV `edge/owners`, a JSON object, prefix → service, written by check-and-set.

Each edge gives out prefixes by itself and at once, from what it sees in Consul; what it gave it proposes, on top of the document that
it knew. When another edge was first, the proposal is refused, and that edge's document is taken for right before anything
is given out anew. So two edges that see two claims in a different order differ for milliseconds, and never for long.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from discovery.consul.api import ConsulApi
from discovery.errors import ConsulError, ConsulRefused, ContractError
from haproxy.controller.consul.keywatch import KeyWatch
from haproxy.controller.loop.steady import Health, steady
from haproxy.controller.metrics import Metrics
from haproxy.controller.wanted.ownership import parse_pins

log = structlog.get_logger(__name__)

KEY = "edge/owners"
# Two edges that see different things for a while must not keep Consul busy.
ROUND_S = 1.0
RETRY_S = 2.0
REFUSED_S = 30.0


@dataclass(frozen=True, slots=True)
class Agreed:
    """The document, and the index of its last change; None and 0 where there is none yet."""

    owners: Mapping[str, str] | None
    modified: int


class Agreement:
    """Reads, follows and proposes. `callback` gets the document when it changes; one that is broken changes nothing."""

    def __init__(
        self, api: ConsulApi, callback: Callable[[Agreed], None], metrics: Metrics, health: Health
    ) -> None:
        self._api = api
        self._callback = callback
        self._metrics = metrics
        self._wake = threading.Condition()
        self._proposal: Agreed | None = None
        self._failure = ""
        self._watch = KeyWatch(api, KEY, self._changed, health)
        self._loop = steady("owners", self._turn, health)

    def start(self) -> None:
        self._watch.start()
        self._loop.start()

    def stop(self) -> None:
        self._watch.stop()
        self._loop.stop()
        with self._wake:
            self._wake.notify()

    def read(self) -> Agreed | None:
        """What is agreed now; None where that cannot be read, which is told."""
        try:
            _, modified, value = self._api.kv_entry(KEY)
        except ConsulError as error:
            log.warning("owners not read, those last known stand", key=KEY, error=str(error))
            return None
        return self._parse(modified, value)

    def propose(self, proposal: Agreed) -> None:
        """Write these owners soon, unless the document has changed since the index given; in place of a proposal that still waits."""
        with self._wake:
            self._proposal = proposal
            self._wake.notify()

    def _changed(self, modified: int, value: bytes | None) -> None:
        agreed = self._parse(modified, value)
        if agreed is not None:
            self._callback(agreed)

    def _parse(self, modified: int, value: bytes | None) -> Agreed | None:
        try:
            return Agreed(None if value is None else parse_pins(value, KEY), modified)
        except ContractError as error:
            self._metrics.errors.labels("owners").inc()
            log.error("owners refused, those last known stand", key=KEY, error=str(error))
            return None

    def _turn(self) -> float:
        with self._wake:
            self._wake.wait_for(lambda: self._loop.stopped or self._proposal is not None)
            proposal, self._proposal = self._proposal, None
        if proposal is None:
            return 0.0
        try:
            # Refused as too late: the watch brings what was first, and another proposal comes of it.
            self._api.kv_cas(KEY, json.dumps(proposal.owners, indent=1).encode(), proposal.modified)
            self._failure = ""
            return ROUND_S
        except ConsulError as error:
            self._metrics.errors.labels("owners").inc()
            if str(error) != self._failure:
                log.warning("owners wait, consul does not take them", key=KEY, error=str(error)[:300])
            self._failure = str(error)
            with self._wake:
                self._proposal = self._proposal or proposal
            return REFUSED_S if isinstance(error, ConsulRefused) else RETRY_S
