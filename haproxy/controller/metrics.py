"""The controller's metrics, all of them. Labels come from small fixed sets."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from discovery.contract import KEYS
from haproxy.controller.loop.steady import Health

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_PREFIX = "breakwater_controller_"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
REJECTION_REASONS = KEYS | {"name", "id", "address", "port", "owner", "kind"}


class Metrics:
    """One registry of its own, so that two controllers in one process (tests) do not meet."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(_PREFIX + name, text, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=registry)

        self.view_age = gauge("view_age_seconds", "Age of the view of Consul.")
        self.applied = Histogram(
            _PREFIX + "change_to_applied_seconds",
            "From a change in the view until HAProxy has it.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self.reloads = counter("reloads_total", "Reloads of HAProxy that came up.", "reason")
        self.reload_failures = counter("reload_failures_total", "Reloads that did not come about.", "reason")
        self.commands = counter(
            "commands_total", "Runtime API commands that change something.", "command", "outcome"
        )
        self.rejections = counter(
            "rejections_total", "Instances and prefixes newly refused, by what was wrong.", "reason"
        )
        self.rejected = gauge("rejected", "Instances and prefixes refused now.")
        self.guard = gauge("guard_active", "1 while the guard holds servers.")
        self.guard_trips = counter("guard_trips_total", "Times the guard tripped.")
        self.haproxy_up = gauge("haproxy_up", "1 while the Runtime API answers.")
        self.in_step = gauge("in_step", "1 while no change, reload or full sync is under way.")
        self.full_sync = gauge("full_sync_seconds", "Duration of the last full sync.")
        self.servers = gauge("servers", "Instances in rotation.")
        self.routes = gauge("routes", "Accepted routes.")
        self.keys = gauge("keys", "Keys that tokens are verified with.")
        self.problems = gauge("problems", "Parts of the controller with a problem: /health/ready names them.")
        self.errors = counter("errors_total", "Failures that are tried again.", "what")

    def reject(self, field: str) -> None:
        """Count one rejection; a field that the contract does not know counts as `other`."""
        self.rejections.labels(field if field in REJECTION_REASONS else "other").inc()

    def serve(
        self, address: str, port: int, view_age: Callable[[], float], health: Health
    ) -> Callable[[], None]:
        """Serve /metrics, /health/live and /health/ready there (`*`: on all of IPv4); returns what stops it. Raises OSError
        when the port is in use."""
        self.view_age.set_function(view_age)
        self.problems.set_function(lambda: len(health.problems()))
        app = _app(make_wsgi_app(self.registry), health)
        every = "0.0.0.0"  # noqa: S104  by the operator's own setting
        kind = _Server6 if ":" in address else _Server
        server = make_server(address.replace("*", every), port, app, kind, _Handler)
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(timeout=5)

        return stop


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Requests for metrics are not worth a line."""


def _app(metrics: WSGIApplication, health: Health) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path not in ("/health/live", "/health/ready"):
            return metrics(environ, start_response)
        problems = health.problems() if path == "/health/ready" else {}
        status = "503 Service Unavailable" if problems else "200 OK"
        start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
        document = (
            {"status": "not ready", "problems": problems} if problems else {"status": path.split("/")[2]}
        )
        return [json.dumps(document).encode()]

    return app
