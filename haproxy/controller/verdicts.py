"""Telling the owners: one verdict a service in Consul's KV, in the log and in the metrics."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul_api import ConsulApi
from discovery.errors import ConsulError
from haproxy.controller.desired import Outcome
from haproxy.controller.metrics import Metrics

log = structlog.get_logger(__name__)

# Consul takes 512 KiB a key; an owner learns enough from the first of many.
MAX_TOLD = 50
RETRY_S = 2.0
# Somebody may have deleted or changed verdicts, or Consul may be another one.
COMPARE_EVERY_S = 30.0


def verdict(outcome: Outcome) -> dict[str, Any]:
    """What the owner learns, without edge and time.

    `state`: `accepted` (all that was asked for), `partly` (served, but something was refused), `rejected` (not served)
    or `not-exposed` (asks for nothing). `accepted` is true for the first two.
    """
    election = outcome.election
    fatal = [r for r in election.rejections if r.fatal]
    asked = election.route is not None or bool(fatal)
    served = outcome.route is not None and election.route is not None
    clean = not outcome.refused and not election.rejections
    state = "not-exposed" if not asked else "rejected" if not served else "accepted" if clean else "partly"
    reasons = [f"{r.path}: {r.reason}" for r in outcome.refused]
    reasons += [f"{r.instance}: {r.field}: {r.reason}" for r in election.rejections]
    return {
        "service": election.service,
        "state": state,
        "accepted": state in ("accepted", "partly"),
        "paths": list(outcome.route.paths) if served and outcome.route else [],
        "refused": [{"path": r.path, "reason": r.reason} for r in outcome.refused],
        "rejected_instances": [
            {"id": r.instance[:100], "field": r.field, "reason": r.reason} for r in fatal[:MAX_TOLD]
        ],
        "reasons": reasons[:MAX_TOLD],
    }


class VerdictWriter:
    """Writes verdicts on a thread of its own, only those that changed, and deletes those of services that have gone.

    Consul away: the latest verdict of each service waits, and is written when Consul is back.
    """

    def __init__(self, api: ConsulApi, edge: str, metrics: Metrics, clock: Clock = SYSTEM_CLOCK) -> None:
        self._api = api
        self._edge = edge
        self._prefix = f"edge/status/{quote(edge, safe='')}/"
        self._metrics = metrics
        self._clock = clock
        self._wake = threading.Condition()
        self._wanted: dict[str, dict[str, Any]] = {}
        self._written: dict[str, dict[str, Any]] = {}
        self._rejected: dict[str, frozenset[tuple[str, str, str]]] = {}
        self._dirty: set[str] = set()
        self._failing = False
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="verdicts", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def submit(self, outcomes: Mapping[str, Outcome | None]) -> None:
        """The outcomes of services that may have changed; None for one that has gone."""
        with self._wake:
            for service, outcome in outcomes.items():
                self._count(service, outcome)
                wanted = verdict(outcome) if outcome is not None else None
                if wanted == self._wanted.get(service):
                    continue
                self._log(service, wanted)
                if wanted is None:
                    self._wanted.pop(service, None)
                else:
                    self._wanted[service] = wanted
                self._dirty.add(service)
            self._metrics.rejected.set(sum(map(len, self._rejected.values())))
            self._wake.notify()

    def _count(self, service: str, outcome: Outcome | None) -> None:
        before = self._rejected.pop(service, frozenset())
        if outcome is None:
            return
        refused = {(r.path, "owner", r.reason) for r in outcome.refused}
        refused |= {(r.instance, r.field, r.reason) for r in outcome.election.rejections}
        for _, field, _ in refused - before:
            self._metrics.reject(field)
        if refused:
            self._rejected[service] = frozenset(refused)

    def _log(self, service: str, wanted: dict[str, Any] | None) -> None:
        if wanted is None:
            log.info("service has gone", service=service[:63])
        elif wanted["reasons"]:
            log.warning("verdict", service=service[:63], state=wanted["state"], reasons=wanted["reasons"][:5])
        else:
            log.info("verdict", service=service[:63], state=wanted["state"], paths=wanted["paths"])

    # -- the thread

    def _run(self) -> None:
        compared = float("-inf")
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or bool(self._dirty), timeout=COMPARE_EVERY_S)
                if self._stopped and not self._dirty:
                    return
                stopping = self._stopped
            try:
                if self._clock.monotonic() - compared >= COMPARE_EVERY_S:
                    self._compare()
                    compared = self._clock.monotonic()
                self._write()
                self._failing = False
            except ConsulError as error:
                self._metrics.errors.labels("verdicts").inc()
                if not self._failing:
                    log.warning("verdicts wait, consul does not take them", error=str(error))
                self._failing = True
                if stopping:
                    return
                self._clock.sleep(RETRY_S)

    def _compare(self) -> None:
        """Read what stands in the KV; what is not as it should be is written or deleted by the next write."""
        found: dict[str, dict[str, Any]] = {}
        for key, value in self._api.kv_list(self._prefix).items():
            try:
                document = json.loads(value)
            except ValueError:
                document = None
            document = document if isinstance(document, dict) else {}
            service = str(document.get("service"))
            if self._key(service) != key:
                self._api.kv_delete(key)
                continue
            found[service] = {k: v for k, v in document.items() if k not in ("edge", "time")}
        with self._wake:
            self._written = found
            self._dirty |= found.keys() ^ self._wanted.keys()
            self._dirty |= {s for s, wanted in self._wanted.items() if found.get(s) != wanted}

    def _write(self) -> None:
        with self._wake:
            dirty, self._dirty = self._dirty, set()
            wanted = {service: self._wanted.get(service) for service in dirty}
        try:
            for service in sorted(dirty):
                self._write_one(service, wanted[service])
                dirty.discard(service)
        finally:
            with self._wake:
                self._dirty |= dirty

    def _write_one(self, service: str, wanted: dict[str, Any] | None) -> None:
        if wanted is None:
            self._api.kv_delete(self._key(service))
            self._written.pop(service, None)
        elif self._written.get(service) != wanted:
            told = {**wanted, "edge": self._edge, "time": self._clock.time()}
            self._api.kv_put(self._key(service), json.dumps(told).encode())
            self._written[service] = wanted

    def _key(self, service: str) -> str:
        """A name that is no service name may hold anything, and must stay one segment of the key."""
        return self._prefix + quote(service, safe="")
