"""The two documents about owners in Consul's KV, both JSON objects, prefix → service.

`edge/policy/owners` holds the operator's pins. `edge/owners` is what all edges have agreed on, written by check-and-set: each edge gives
out prefixes by itself and at once, from what it sees in Consul, and proposes what it gave on top of the document that it knew. When another
edge was first, the proposal is refused, and that edge's document is taken for right before anything is given out again. So two edges
that see two claims in a different order differ for milliseconds, and never for long.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import structlog

from discovery.consul.api import ConsulApi
from discovery.consul.watch import TokenBucket, Watch
from discovery.errors import ConsulError, ConsulRefused, ContractError
from haproxy.controller.loop.steady import Health, steady
from haproxy.controller.metrics import Metrics
from haproxy.controller.wanted.ownership import Agreed, parse_pins

log = structlog.get_logger(__name__)

PINS = "edge/policy/owners"
AGREED = "edge/owners"
# Two edges that see different things for a while must not keep Consul busy.
ROUND_S = 1.0
RETRY_S = 2.0
REFUSED_S = 30.0


class Document:
    """Reads and follows one of them. `callback` gets it when it changes; one that cannot be read changes nothing, and is reported.

    `what` names it in the metrics.
    """

    def __init__(
        self, api: ConsulApi, key: str, what: str, callback: Callable[[Agreed], None], metrics: Metrics
    ) -> None:
        self._api = api
        self._key = key
        self._what = what
        self._callback = callback
        self._metrics = metrics
        self._seen: tuple[int, bytes | None] | None = None
        self._watch = Watch(
            key,
            self._fetch,
            lambda entry, _: self._answered(entry),
            lambda _: None,
            bucket=TokenBucket(rate_per_s=10.0, burst=10.0),
        )
        self.start, self.stop = self._watch.start, self._watch.stop

    def read(self) -> Agreed | None:
        """The document now; None where it cannot be read."""
        try:
            return self._parse(self._fetch(0, 0.0)[1])
        except ConsulError as error:
            log.warning("owners not read", key=self._key, error=str(error))
            return None

    def _fetch(self, index: int, wait_s: float) -> tuple[int, tuple[int, bytes | None]]:
        answered, modified, value = self._api.kv_entry(self._key, index, wait_s)
        return answered, (modified, value)

    def _answered(self, entry: tuple[int, bytes | None]) -> None:
        if entry == self._seen:
            return
        agreed = self._parse(entry)
        if agreed is not None:
            self._callback(agreed)
        self._seen = entry

    def _parse(self, entry: tuple[int, bytes | None]) -> Agreed | None:
        modified, value = entry
        try:
            return Agreed(None if value is None else parse_pins(value, self._key), modified)
        except ContractError as error:
            self._metrics.errors.labels(self._what).inc()
            log.error("owners refused, the last good ones stand", key=self._key, error=str(error))
            return None


class Proposer:
    """Writes what this edge proposes, on a thread of its own."""

    def __init__(self, api: ConsulApi, metrics: Metrics, health: Health) -> None:
        self._api = api
        self._metrics = metrics
        self._wake = threading.Condition()
        self._proposal: Agreed | None = None
        self._failure = ""
        self._loop = steady("owners", self._turn, health)
        self.start = self._loop.start

    def stop(self) -> None:
        self._loop.stop()
        with self._wake:
            self._wake.notify()

    def propose(self, proposal: Agreed) -> None:
        """Write these owners soon, unless the document has changed since the index given; in place of a proposal that still waits."""
        with self._wake:
            self._proposal = proposal
            self._wake.notify()

    def _turn(self) -> float:
        with self._wake:
            self._wake.wait_for(lambda: self._loop.stopped or self._proposal is not None)
            proposal, self._proposal = self._proposal, None
        if proposal is None:
            return 0.0
        try:
            # Refused as too late: the watch brings what was first, and another proposal comes of it.
            self._api.kv_cas(AGREED, json.dumps(proposal.owners, indent=1).encode(), proposal.modified)
            self._failure = ""
            return ROUND_S
        except ConsulError as error:
            self._metrics.errors.labels("owners").inc()
            if str(error) != self._failure:
                log.warning("owners wait, consul does not take them", key=AGREED, error=str(error)[:300])
            self._failure = str(error)
            with self._wake:
                self._proposal = self._proposal or proposal
            return REFUSED_S if isinstance(error, ConsulRefused) else RETRY_S
