"""What a hedge needs of ServiceClient: another instance, the retry budget, and how long answers take."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from discovery import (
    BreakerSettings,
    DeadlineExceeded,
    RetrySettings,
    ServiceClient,
    StaticView,
)
from discovery.balancing.ejection import Identity
from tests.support.eventually import eventually
from tests.support.scripted import Handler, Upstream, ok, upstream
from tests.unit.discovery.calling import client


@pytest.fixture
def pair() -> Iterator[tuple[Upstream, Upstream]]:
    with upstream() as one, upstream() as other:
        yield one, other


def test_second_attempt_keeps_away_from_where_the_first_still_waits(pair: tuple[Upstream, Upstream]) -> None:
    release = threading.Event()

    def slow(handler: Handler) -> None:
        release.wait(10)
        handler.answer()

    one, other = pair
    one.behave = slow
    calls = ServiceClient(StaticView([one.instance(id="a"), other.instance(id="b")]))
    places: set[Identity] = set()
    how = {"balance": "first", "places": places}
    first = threading.Thread(target=calls.request, args=("GET", "users", "/"), kwargs=how)
    first.start()
    try:
        eventually(lambda: len(places) == 1, within_s=5)
        second = calls.request("GET", "users", "/", balance="first", places=places)
        assert second.instance.id == "b"
        assert first.is_alive()
    finally:
        release.set()
        first.join(10)
    assert {place[1] for place in places} == {"a", "b"}
    assert len(one.requests) == 1


def test_hedges_take_from_the_budget_of_retries(pair: tuple[Upstream, Upstream]) -> None:
    calls = client(*pair, retry=RetrySettings(floor=2, ratio=0.0))
    assert [calls.spend_retry("users") for _ in range(3)] == [True, True, False]
    assert calls.spend_retry("posts"), "each service has a budget of its own"


def test_latency_is_known_after_enough_good_answers(pair: tuple[Upstream, Upstream]) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.15)
        handler.answer()

    one, _ = pair
    calls = client(one)
    assert calls.latency_s("users") is None
    one.behave = slow
    for number in range(30):
        if number == 3:
            one.behave = ok
        calls.request("GET", "users", "/")
    middle, high = calls.latency_s("users", 0.5), calls.latency_s("users", 0.95)
    assert middle is not None
    assert high is not None
    assert middle < 0.1 < 0.15 <= high < 0.5
    assert calls.latency_s("posts") is None


def test_failed_attempts_say_nothing_about_latency(pair: tuple[Upstream, Upstream]) -> None:
    one, _ = pair
    one.behave = lambda handler: handler.answer(500)
    calls = client(one, breaker=BreakerSettings(min_calls=1000))
    for _ in range(30):
        calls.request("GET", "users", "/")
    assert calls.latency_s("users") is None


def test_deadline_that_is_over_costs_the_upstream_nothing(pair: tuple[Upstream, Upstream]) -> None:
    calls = client(*pair, retry=RetrySettings(floor=0, ratio=1.0))
    for _ in range(5):
        with pytest.raises(DeadlineExceeded) as late:
            calls.request("GET", "users", "/", deadline_s=0)
        assert not late.value.sent
    assert not calls.spend_retry("users"), "a call that was never made adds nothing to the retry budget"
    assert calls.breakers().get("users") is None or calls.breakers()["users"].calls == 0
    assert not pair[0].requests
    assert not pair[1].requests
