"""Verdicts for the owners: one for each service, in Consul's KV, in the log and in the metrics."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import structlog

from discovery.consul.api import ConsulApi
from discovery.errors import ConsulError, ConsulRefused
from haproxy.controller.loop.steady import Health, steady
from haproxy.controller.metrics import Metrics
from haproxy.controller.wanted.election import Outcome

log = structlog.get_logger(__name__)

Verdicts = dict[str, dict[str, Any]]

# Consul takes 512 KiB a key; an owner learns enough from the first of many.
MAX_REASONS = 50
RETRY_S = 2.0
# A verdict is written this often at most.
ROUND_S = 1.0
# Verdicts may have been deleted or changed, or Consul may be another one.
COMPARE_EVERY_S = 30.0


def verdict(outcome: Outcome) -> dict[str, Any]:
    """A verdict, without edge and time.

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
    away: they wait. A key that Consul refuses is tried again after the next comparison, and keeps no other from being written.
    """

    def __init__(self, api: ConsulApi, edge: str, metrics: Metrics, health: Health) -> None:
        self._api = api
        self._edge = edge
        self._prefix = f"edge/status/{key_of(edge)}/"
        self._metrics = metrics
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._wanted: Verdicts = {}
        self._rejected: dict[str, frozenset[tuple[str, str, str]]] = {}
        # The rest belongs to the thread. What Consul has, as far as is known; what it refused counts as well.
        self._written: Verdicts = {}
        self._logged: Verdicts = {}
        self._refused: dict[str, str] = {}
        self._failing = False
        self._compared = float("-inf")
        self._loop = steady("verdicts", self._turn, health)

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        self._loop.stop()
        self._wake.set()
        self._loop.join(10)

    def submit(self, outcomes: Mapping[str, Outcome | None]) -> None:
        """The outcomes of services that may have changed; None for one that has gone."""
        for service, outcome in outcomes.items():
            self._count(service, outcome)
            with self._lock:
                if outcome is None:
                    self._wanted.pop(service, None)
                else:
                    self._wanted[service] = verdict(outcome)
        self._metrics.rejected.set(sum(map(len, self._rejected.values())))
        self._wake.set()

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

    def _turn(self) -> float:
        self._wake.wait(COMPARE_EVERY_S)
        self._wake.clear()
        if self._loop.stopped:
            return 0.0
        with self._lock:
            wanted = dict(self._wanted)
        self._log(wanted)
        try:
            now = time.monotonic()
            if now - self._compared >= COMPARE_EVERY_S:
                self._written = self._read()
                self._compared = now
            self._write(wanted)
            self._failing = False
            return ROUND_S
        except ConsulError as error:
            self._wake.set()
            self._metrics.errors.labels("verdicts").inc()
            if not self._failing:
                log.warning("verdicts wait, consul does not take them", error=str(error))
            self._failing = True
            return RETRY_S

    def _read(self) -> Verdicts:
        """What stands in the KV; what is no verdict of ours is deleted."""
        found: Verdicts = {}
        for key, value in self._api.kv_list(self._prefix).items():
            try:
                document = json.loads(value)
            except (ValueError, RecursionError):
                document = None
            document = document if isinstance(document, dict) else {}
            service = str(document.get("service"))
            if self._key(service) == key:
                found[service] = {k: v for k, v in document.items() if k not in ("edge", "time")}
            else:
                self._attempt(key, partial(self._api.kv_delete, key))
        return found

    def _write(self, wanted: Verdicts) -> None:
        for service in _differing(wanted, self._written):
            key = self._key(service)
            if service in wanted:
                document = {**wanted[service], "edge": self._edge, "time": time.time()}
                self._attempt(key, partial(self._api.kv_put, key, json.dumps(document).encode()))
                self._written[service] = wanted[service]
            else:
                self._attempt(key, partial(self._api.kv_delete, key))
                del self._written[service]

    def _attempt(self, key: str, send: Callable[[], None]) -> None:
        """A refusal is logged once. Raises ConsulError when Consul cannot be asked."""
        try:
            send()
        except ConsulRefused as error:
            self._metrics.errors.labels("verdicts").inc()
            if self._refused.get(key) != error.text:
                log.error("verdict refused by consul", key=key[:200], error=str(error)[:300])
            self._refused[key] = error.text
        else:
            self._refused.pop(key, None)

    def _log(self, wanted: Verdicts) -> None:
        for service in _differing(wanted, self._logged):
            found = wanted.get(service)
            if found is None:
                log.info("service has gone", service=service[:63])
            elif found["reasons"]:
                log.warning(
                    "verdict", service=service[:63], state=found["state"], reasons=found["reasons"][:5]
                )
            else:
                log.info("verdict", service=service[:63], state=found["state"], paths=found["paths"])
        self._logged = wanted

    def _key(self, service: str) -> str:
        return self._prefix + key_of(service)


def _differing(one: Verdicts, other: Verdicts) -> list[str]:
    """Services that have another verdict in the one than in the other, or none."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
