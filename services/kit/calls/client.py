"""Calls to other services: discovery's client, with what the current request hands on.

The client and its connections are made at first use, in the process that uses them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import urllib3

import discovery
from services.kit.telemetry.metrics import Metrics
from services.kit.web import context

VIEW_WAIT_S = 2.0
JWKS_PATH = "/api/auth/.well-known/jwks.json"
REVOCATIONS_PATH = "/internal/auth/revocations"
DOCUMENT_DEADLINE_S = 3.0
BREAKER_LEVELS = {"closed": 0, "half-open": 1, "open": 2}


class BreakerObserver(discovery.Observer):
    """Shows the state of breakers in the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics.upstream

    def on_breaker(self, service: str, state: str) -> None:
        self._metrics.breakers.labels(service).set(BREAKER_LEVELS[state])


class CallObserver(BreakerObserver):
    """Counts calls, attempts and ejections as well."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(metrics)
        # Looking up a labelled child costs more than counting in it.
        self._calls = cache(metrics.upstream.calls.labels)
        self._durations = cache(metrics.upstream.durations.labels)
        self._attempts = cache(metrics.upstream.attempts.labels)

    def on_call(self, service: str, method: str, outcome: str, attempts: int, duration_s: float) -> None:
        self._calls(service, outcome).inc()
        self._durations(service).observe(duration_s)

    def on_attempt(
        self, service: str, instance_id: str, outcome: str, attempt: int, duration_s: float
    ) -> None:
        self._attempts(service, outcome).inc()

    def on_ejected(self, service: str, instance_id: str, duration_s: float) -> None:
        self._metrics.ejections.labels(service).inc()


class Upstreams:
    """`ServiceClient` for views: passes on the request id, the trace and the deadline of the current request.

    Same `request` as discovery's (which see for its errors); `token_source` is asked for a bearer token on each call
    that brings no `Authorization` of its own.
    """

    def __init__(
        self,
        view: Callable[[], discovery.View],
        metrics: Metrics,
        token_source: Callable[[float], str | None] | None = None,
        *,
        settings: discovery.ClientSettings | None = None,
    ) -> None:
        self._view = view
        self._metrics = metrics
        self._token_source = token_source
        self._settings = settings or discovery.ClientSettings()
        self._lock = threading.Lock()
        self._client: discovery.ServiceClient | None = None

    def breakers(self) -> dict[str, discovery.BreakerStatus]:
        """The state of each upstream's breaker."""
        return self._started().breakers()

    def request(self, method: str, service: str, path: str, **options: Any) -> discovery.Response:
        """Call a service. Options as in `discovery.ServiceClient.request`; `deadline_s` is cut to what is left."""
        began = time.monotonic()
        usual_s = given_s = options.get("deadline_s") or self._settings.deadline_s
        caller = context.peek()
        if caller is not None:
            given_s = min(given_s, caller.remaining_s())
            options.setdefault("request_id", caller.request_id)
            options.setdefault("traceparent", caller.traceparent)
        client = self._started(given_s)
        options["deadline_s"] = given_s - (time.monotonic() - began)
        return client.request(method, service, path, usual_s=usual_s, **options)

    def _started(self, within_s: float = 0.0) -> discovery.ServiceClient:
        view = self._view()
        if self._client is None:
            with self._lock:
                if self._client is None:
                    self._client = discovery.ServiceClient(
                        view,
                        settings=self._settings,
                        token_source=self._token_source,
                        observer=CallObserver(self._metrics),
                    )
        if not view.ready(0):
            view.ready(min(VIEW_WAIT_S, within_s))
        return self._client


def fetch_document(upstreams: Upstreams, path: str, url: str | None) -> dict[str, Any]:
    """What auth publishes at `path`, through discovery or from a fixed URL. Raises on anything but a 200 with a JSON object."""
    if url:
        answer = urllib3.request("GET", url, timeout=DOCUMENT_DEADLINE_S, retries=False, redirect=False)
        status, document = answer.status, answer.json() if answer.status == 200 else None
    else:
        response = upstreams.request("GET", "auth", path, deadline_s=DOCUMENT_DEADLINE_S)
        status, document = response.status, response.json() if response.status == 200 else None
    if not isinstance(document, dict):
        raise ValueError(f"auth answered {status} for {path}")
    return document
