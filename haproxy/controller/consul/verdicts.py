"""What the owners learn: one verdict a service in Consul's KV, in the log and in the metrics."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import structlog

from discovery.consul.api import ConsulApi
from discovery.errors import ConsulError, ConsulRefused
from haproxy.controller.loop.steady import Health, steady
from haproxy.controller.metrics import Metrics
from haproxy.controller.wanted.election import Outcome

log = structlog.get_logger(__name__)

# Consul takes 512 KiB a key; an owner learns enough from the first of many.
MAX_REASONS = 50
RETRY_S = 2.0
# A verdict is not written more often than this.
ROUND_S = 1.0
# Verdicts may have been deleted or changed, or Consul may be another one.
COMPARE_EVERY_S = 30.0


def verdict(outcome: Outcome) -> dict[str, Any]:
    """What the owner learns, without edge and time.

    `state`: `accepted` (all that was asked for), `partly` (served, but something was refused), `pending` (accepted, but HAProxy
    does not have it yet), `rejected` (not served) or `not-exposed` (asks for nothing). `accepted` is true for the first two.
    """
    admission = outcome.admission
    fatal = [r for r in admission.rejections if r.fatal]
    asked = admission.route is not None or bool(fatal)
    served = outcome.route is not None and admission.route is not None
    clean = not outcome.refused and not admission.rejections
    state = "not-exposed" if not asked else "rejected" if not served else "accepted" if clean else "partly"
    reasons = []
    if served and outcome.pending:
        state, reasons = "pending", [outcome.pending]
    reasons += [f"{r.path}: {r.reason}" for r in outcome.refused]
    reasons += [f"{r.instance}: {r.field}: {r.reason}" for r in admission.rejections]
    return {
        "service": admission.service,
        "state": state,
        "accepted": state in ("accepted", "partly"),
        "paths": list(outcome.route.paths) if served and outcome.route else [],
        "refused": [{"path": r.path, "reason": r.reason} for r in outcome.refused],
        "rejected_instances": [
            {"id": r.instance[:100], "field": r.field, "reason": r.reason} for r in fatal[:MAX_REASONS]
        ],
        "reasons": reasons[:MAX_REASONS],
    }


def key_of(service: str) -> str:
    """One segment of a key for whatever name: `%` some Consuls refuse, and `.` or `..` would be another key."""
    text = quote(service, safe="").replace("~", "~7E").replace("%", "~")
    text = f"~2E{text[1:]}" if text.startswith(".") else text
    return text if len(text) <= 200 else f"{text[:160]}~~{hashlib.sha256(service.encode()).hexdigest()[:32]}"


class VerdictWriter:
    """Writes verdicts on a thread of its own, only those that changed, and deletes those of services that have gone.

    One a second for each service, the latest: a service that flaps must not fill the log, nor keep Consul busy. Consul
    away: they wait. A key that Consul refuses is tried again with the next comparison, and keeps no other from being written.
    """

    def __init__(self, api: ConsulApi, edge: str, metrics: Metrics, health: Health) -> None:
        self._api = api
        self._edge = edge
        self._prefix = f"edge/status/{key_of(edge)}/"
        self._metrics = metrics
        self._wake = threading.Condition()
        self._wanted: dict[str, dict[str, Any]] = {}
        self._written: dict[str, dict[str, Any]] = {}
        self._logged: dict[str, dict[str, Any]] = {}
        self._rejected: dict[str, frozenset[tuple[str, str, str]]] = {}
        self._dirty: set[str] = set()
        self._refused: dict[str, str] = {}
        self._failing = False
        self._compared = float("-inf")
        self._loop = steady("verdicts", self._turn, health)

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        self._loop.stop()
        with self._wake:
            self._wake.notify()
        self._loop.join(10)

    def submit(self, outcomes: Mapping[str, Outcome | None]) -> None:
        """The outcomes of services that may have changed; None for one that has gone."""
        with self._wake:
            for service, outcome in outcomes.items():
                self._count(service, outcome)
                wanted = verdict(outcome) if outcome is not None else None
                if wanted == self._wanted.get(service):
                    continue
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
        refused |= {(r.instance, r.field, r.reason) for r in outcome.admission.rejections}
        for _, field, _ in refused - before:
            self._metrics.reject(field)
        if refused:
            self._rejected[service] = frozenset(refused)

    # -- the thread

    def _turn(self) -> float:
        with self._wake:
            self._wake.wait_for(lambda: self._loop.stopped or bool(self._dirty), timeout=COMPARE_EVERY_S)
        if self._loop.stopped:
            return 0.0
        try:
            now = time.monotonic()
            if now - self._compared >= COMPARE_EVERY_S:
                self._compare()
                self._compared = now
            self._write()
            self._failing = False
            return ROUND_S
        except ConsulError as error:
            self._metrics.errors.labels("verdicts").inc()
            if not self._failing:
                log.warning("verdicts wait, consul does not take them", error=str(error))
            self._failing = True
            return RETRY_S

    def _compare(self) -> None:
        """Read what stands in the KV; what is not as it should be is written or deleted by the next write."""
        found: dict[str, dict[str, Any]] = {}
        for key, value in self._api.kv_list(self._prefix).items():
            try:
                document = json.loads(value)
            except (ValueError, RecursionError):
                document = None
            document = document if isinstance(document, dict) else {}
            service = str(document.get("service"))
            if self._key(service) != key:
                self._attempt(key, lambda key=key: self._api.kv_delete(key))  # type: ignore[misc]
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
        for service in dirty:
            self._log(service, wanted[service])
        try:
            for service in sorted(dirty):
                self._write_one(service, wanted[service])
                dirty.discard(service)
        finally:
            with self._wake:
                self._dirty |= dirty

    def _write_one(self, service: str, wanted: dict[str, Any] | None) -> None:
        key = self._key(service)
        if wanted is None:
            if self._attempt(key, lambda: self._api.kv_delete(key)):
                self._written.pop(service, None)
        elif self._written.get(service) != wanted:
            document = json.dumps({**wanted, "edge": self._edge, "time": time.time()}).encode()
            if self._attempt(key, lambda: self._api.kv_put(key, document)):
                self._written[service] = wanted

    def _attempt(self, key: str, send: Callable[[], None]) -> bool:
        """Answers whether Consul took it; a refusal is logged once. Raises ConsulError when Consul cannot be asked."""
        try:
            send()
        except ConsulRefused as error:
            self._metrics.errors.labels("verdicts").inc()
            if self._refused.get(key) != error.text:
                log.error("verdict refused by consul", key=key[:200], error=str(error)[:300])
            self._refused[key] = error.text
            return False
        self._refused.pop(key, None)
        return True

    def _log(self, service: str, wanted: dict[str, Any] | None) -> None:
        if wanted == self._logged.get(service):
            return
        if wanted is None:
            self._logged.pop(service)
            log.info("service has gone", service=service[:63])
            return
        self._logged[service] = wanted
        if wanted["reasons"]:
            log.warning("verdict", service=service[:63], state=wanted["state"], reasons=wanted["reasons"][:5])
        else:
            log.info("verdict", service=service[:63], state=wanted["state"], paths=wanted["paths"])

    def _key(self, service: str) -> str:
        return self._prefix + key_of(service)
