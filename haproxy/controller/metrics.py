"""The controller's metrics, all of them. Labels come from small fixed sets."""

from __future__ import annotations

from collections.abc import Callable
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from discovery.contract import KEYS

_PREFIX = "breakwater_controller_"
REJECTION_REASONS = KEYS | {"name", "id", "address", "port", "owner"}


class Metrics:
    """One registry of its own, so that two controllers in one process (tests) do not meet."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.view_age = Gauge(f"{_PREFIX}view_age_seconds", "Age of the view of Consul.", registry=registry)
        self.applied = Histogram(
            f"{_PREFIX}change_to_applied_seconds",
            "From a change in the view until HAProxy has it.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self.reloads = Counter(
            f"{_PREFIX}reloads_total", "Reloads of HAProxy that came up.", ["reason"], registry=registry
        )
        self.reload_failures = Counter(
            f"{_PREFIX}reload_failures_total",
            "Reloads that did not come about.",
            ["reason"],
            registry=registry,
        )
        self.commands = Counter(
            f"{_PREFIX}commands_total",
            "Runtime API commands that change something.",
            ["command", "outcome"],
            registry=registry,
        )
        self.rejections = Counter(
            f"{_PREFIX}rejections_total",
            "Instances and prefixes newly refused, by what was wrong.",
            ["reason"],
            registry=registry,
        )
        self.rejected = Gauge(f"{_PREFIX}rejected", "Instances and prefixes refused now.", registry=registry)
        self.guard = Gauge(f"{_PREFIX}guard_active", "1 while the guard holds servers.", registry=registry)
        self.guard_trips = Counter(
            f"{_PREFIX}guard_trips_total", "Times the guard tripped.", registry=registry
        )
        self.haproxy_up = Gauge(f"{_PREFIX}haproxy_up", "1 while the Runtime API answers.", registry=registry)
        self.in_step = Gauge(
            f"{_PREFIX}in_step", "1 while no change, reload or full sync is under way.", registry=registry
        )
        self.full_sync = Gauge(
            f"{_PREFIX}full_sync_seconds", "Duration of the last full sync.", registry=registry
        )
        self.servers = Gauge(f"{_PREFIX}servers", "Instances in rotation.", registry=registry)
        self.services = Gauge(f"{_PREFIX}routes", "Accepted routes.", registry=registry)
        self.keys = Gauge(f"{_PREFIX}keys", "Keys that tokens are verified with.", registry=registry)
        self.errors = Counter(
            f"{_PREFIX}errors_total", "Failures that are tried again.", ["what"], registry=registry
        )

    def reject(self, field: str) -> None:
        """Count one rejection; a field that is none of the contract's counts as `other`."""
        self.rejections.labels(field if field in REJECTION_REASONS else "other").inc()

    def serve(self, port: int, view_age: Callable[[], float]) -> Callable[[], None]:
        """Serve /metrics on loopback; returns what stops it. Raises OSError when the port is in use."""
        self.view_age.set_function(view_age)
        server: WSGIServer
        server, thread = start_http_server(port, addr="127.0.0.1", registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(timeout=5)

        return stop
