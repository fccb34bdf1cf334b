"""What `status` reads, served as the real ones serve it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from discovery.resilience.breaker import Transition
from gateway.breakers.admin import BreakerObserver as GatewayObserver
from gateway.metrics import BreakerMetrics
from services.kit.calls.client import BreakerObserver
from services.kit.telemetry.metrics import Metrics
from stack import views


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("auth")


@pytest.fixture
def port(metrics: Metrics) -> Iterator[int]:
    """An instance of auth with these metrics."""

    class Instance(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("X-Service", "auth")
            self.end_headers()
            self.wfile.write(metrics.render())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Instance)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join(5)
    server.server_close()


def test_breakers_that_are_not_closed_are_named(metrics: Metrics, port: int) -> None:
    assert views.open_breakers(port) == []
    observer = BreakerObserver(metrics)
    observer.on_breaker("users", "open")
    observer.on_breaker("quota", "half-open")
    observer.on_breaker("posts", "open")
    observer.on_breaker("posts", "closed")
    assert sorted(views.open_breakers(port) or []) == ["quota half-open", "users open"]


def test_gateways_tell_who_opened_a_breaker(metrics: Metrics, port: int) -> None:
    observer = GatewayObserver(metrics, BreakerMetrics(metrics.registry))
    for service, who in (("users", "hand"), ("quota", "shared"), ("posts", "local"), ("cart", "hand")):
        observer.on_transition(service, Transition(1, 0.0, "closed", "open", who, "why"))
    observer.on_transition("users", Transition(2, 0.0, "open", "half-open", "local", "why"))
    observer.on_transition("cart", Transition(2, 0.0, "open", "closed", "hand", "why"))
    shown = ["posts open", "quota open (shared)", "users half-open"]
    assert sorted(views.open_breakers(port) or []) == shown
    observer.on_transition("users", Transition(3, 0.0, "half-open", "open", "hand", "why"))
    assert "users open by hand" in (views.open_breakers(port) or [])


def test_silent_instance_has_no_breakers_to_show() -> None:
    assert views.open_breakers(1) is None


def test_port_taken_over_by_another_service_is_not_ready(port: int) -> None:
    assert views.instance_ready("auth", port)
    assert not views.instance_ready("users", port)
    assert not views.instance_ready("users", 1)
