"""Where the controller's metrics can be read."""

from __future__ import annotations

import urllib.request

import pytest

from haproxy.controller.loop.steady import Health
from haproxy.controller.metrics import Metrics
from tests.support.servers import free_port


def scrape(address: str, port: int) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def test_metrics_are_served_on_the_address_that_is_set_and_on_no_other() -> None:
    port = free_port()
    stop = Metrics().serve("127.0.0.2", port, lambda: 1.5, Health())
    try:
        assert "breakwater_controller_view_age_seconds 1.5" in scrape("127.0.0.2", port)
        with pytest.raises(OSError):
            scrape("127.0.0.1", port)
    finally:
        stop()


def test_star_is_every_address() -> None:
    port = free_port()
    stop = Metrics().serve("*", port, lambda: 1.5, Health())
    try:
        assert scrape("127.0.0.1", port) == scrape("127.0.0.3", port)
    finally:
        stop()
