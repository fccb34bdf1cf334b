"""Calls from service to service: whatever is waited for on the way is within the time that the caller has."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest

import discovery
from discovery.errors import CallError
from services.kit.auth.service_token import TokenSource
from services.kit.calls.client import Upstreams
from services.kit.telemetry.metrics import Metrics
from services.kit.web.context import Caller, set_current
from tests.support.eventually import time_scale
from tests.support.matrix import one_always
from tests.support.scripted import Handler, Upstream, upstream


class View(discovery.StaticView):
    """Static; one that has nothing waits for its first answer for as long as it may."""

    def ready(self, within_s: float) -> bool:
        if not self.snapshot().services:
            time.sleep(within_s)
        return bool(self.snapshot().services)


def calls(view: View, token_source: Any = None) -> Upstreams:
    return Upstreams(lambda: cast(discovery.View, view), Metrics("pears"), token_source)


def slow(handler: Handler) -> None:
    time.sleep(0.6)
    handler.answer()


def test_deadline_holds_before_the_first_view_of_the_catalog() -> None:
    began = time.monotonic()
    with pytest.raises(CallError):
        calls(View([])).request("GET", "users", "/", deadline_s=0.2)
    assert time.monotonic() - began < 0.4 * time_scale()


def test_deadline_holds_while_a_token_is_fetched() -> None:
    asked = threading.Event()

    def auth(path: str, body: dict[str, str]) -> tuple[int, Any]:
        asked.set()
        time.sleep(1.5)
        return 503, None

    with upstream() as server:
        began = time.monotonic()
        with pytest.raises(CallError):
            calls(View([server.instance()]), TokenSource("pears", "s", auth)).request(
                "GET", "users", "/", deadline_s=0.2
            )
        assert time.monotonic() - began < 0.4 * time_scale()
        assert asked.is_set()


@pytest.mark.parametrize("addresses", one_always(3, 1, 10))
def test_deadline_that_is_passed_on_opens_no_breaker(addresses: int) -> None:
    with upstream(slow) as server:
        upstreams = calls(View([server.instance()]))
        try:
            for number in range(24):
                set_current(Caller(deadline=time.monotonic() + 0.06, subject=f"10.0.0.{number % addresses}"))
                with pytest.raises(CallError):
                    upstreams.request("GET", "users", "/", deadline_s=3.0)
            assert _failures(upstreams, server) == 0
        finally:
            set_current(None)
        assert upstreams.request("GET", "users", "/").status == 200


def test_deadline_of_the_services_own_counts_when_it_is_over() -> None:
    with upstream(slow) as server:
        upstreams = calls(View([server.instance()]))
        with pytest.raises(CallError):
            upstreams.request("POST", "users", "/", deadline_s=0.55)
        assert _failures(upstreams, server) == 1


def _failures(upstreams: Upstreams, server: Upstream) -> int:
    assert server.requests, "it was never asked"
    return upstreams.breakers()["users"].failures
