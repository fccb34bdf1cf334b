"""The metrics of a service, all declared here: requests by rate, errors and duration, and what it depends on.

Labels come from small fixed sets: `route` is the template that matched (or `unmatched`), never the path.
"""

from __future__ import annotations

from functools import cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)

# GRPC stands for every call by gRPC, whose routes are its methods.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "GRPC"})
# From a cached answer to the edge's patience (30 s).
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
UNMATCHED = "unmatched"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry a service; an instance is one worker process, so that no multiprocess mode is needed."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        labels = ("service", "method", "route")
        self._requests = Counter(
            "service_requests", "Requests answered.", (*labels, "status"), registry=self.registry
        )
        self._durations = Histogram(
            "service_request_duration_seconds",
            "Time from the request to the last byte of its answer.",
            labels,
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "service_requests_in_progress", "Requests being served.", ("service",), registry=self.registry
        ).labels(service)
        self.stale = Counter(
            "service_stale_answers",
            "Answers to be kept for gateways: stored, removed, forgotten, dropped (queue full), failed …",
            ("outcome",),
            registry=self.registry,
        )
        self.tokens = Counter(
            "service_tokens_checked", "Tokens checked, by outcome.", ("outcome",), registry=self.registry
        )
        self.events_waiting = Gauge(
            "service_events_waiting",
            "Events that no broker has yet: how many, and the age of the oldest in seconds.",
            ("measure",),
            registry=self.registry,
        )
        self.upstream = UpstreamMetrics(self.registry)
        self.service = service
        # Looking up a labelled child costs more than counting in it.
        self._children = cache(self._labelled)

    def observe(self, method: str, route: str | None, status: int, duration_s: float) -> None:
        """Count one answered request."""
        known = method if method in METHODS else "OTHER"
        count, duration = self._children(known, route or UNMATCHED, status)
        count.inc()
        duration.observe(duration_s)

    def _labelled(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        labels = (self.service, method, route)
        return self._requests.labels(*labels, str(status)), self._durations.labels(*labels)

    def render(self) -> bytes:
        """The registry in Prometheus's text format."""
        return generate_latest(self.registry)


class UpstreamMetrics:
    """What calls to other services took and came to, and how it is with their breakers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "service_upstream_calls",
            "Calls to other services, by upstream and outcome.",
            ("upstream", "outcome"),
            registry=registry,
        )
        self.attempts = Counter(
            "service_upstream_attempts",
            "Attempts that those calls took, retries included.",
            ("upstream", "outcome"),
            registry=registry,
        )
        self.ejections = Counter(
            "service_upstream_ejections",
            "Instances of an upstream left out for a time.",
            ("upstream",),
            registry=registry,
        )
        self.durations = Histogram(
            "service_upstream_call_duration_seconds",
            "Time of calls to other services, retries included.",
            ("upstream",),
            buckets=BUCKETS_S,
            registry=registry,
        )
        self.breakers = Gauge(
            "service_upstream_breaker",
            "Breaker of an upstream: 0 closed, 1 half-open, 2 open.",
            ("upstream",),
            registry=registry,
        )
