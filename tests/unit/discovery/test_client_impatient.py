"""Callers that would not wait: what becomes of their calls says nothing about the upstream."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest

from discovery import BreakerSettings, ClientSettings, DeadlineExceeded, OutlierSettings
from discovery.calls.client import Relay
from discovery.errors import CallError
from discovery.resilience.patience import Patience
from tests.support.scripted import Handler, Upstream, upstream
from tests.unit.discovery.calling import client, hang, status

OPENS_AT_ONCE = BreakerSettings(min_calls=1, open_s=60)
EJECTS_AT_ONCE = OutlierSettings(failures=1)
ROUTE = Relay(3.0, 60.0)


def late_answer(handler: Handler) -> None:
    """As a service that has been given no time to ask others."""
    handler.answer(504)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("behave", [hang(1.0), late_answer, status(503)])
@pytest.mark.parametrize("options", [{"relay": ROUTE, "stream": True}, {"usual_s": 3.0}])
def test_failure_of_a_call_with_less_time_than_usual_counts_against_nobody(
    behave: Callable[[Handler], None], method: str, options: dict[str, object]
) -> None:
    with upstream(behave) as slow:
        calls = client(slow, breaker=OPENS_AT_ONCE, outlier=EJECTS_AT_ONCE)
        with contextlib.suppress(CallError):
            calls.request(method, "users", "/", deadline_s=0.6, **options)  # type: ignore[arg-type]
        assert slow.requests, "it was never asked"
        assert (calls.breakers()["users"].state, calls.breakers()["users"].calls) == ("closed", 0)
        assert not calls.guard.upstream("users").outliers.ejected()


@pytest.mark.parametrize(
    ("options", "deadline_s"),
    [({"relay": Relay(0.6, 60.0), "stream": True}, 0.7), ({"usual_s": 0.6}, 0.6), ({}, 0.6)],
)
def test_being_late_counts_where_the_call_had_its_usual_time(
    options: dict[str, object], deadline_s: float
) -> None:
    with upstream(hang(2.0)) as slow:
        calls = client(slow, breaker=OPENS_AT_ONCE, outlier=EJECTS_AT_ONCE)
        with pytest.raises(CallError) as late:
            calls.request("POST", "users", "/", deadline_s=deadline_s, **options)  # type: ignore[arg-type]
        assert not late.value.neutral
        assert calls.breakers()["users"].state == "open"
        assert calls.guard.upstream("users").outliers.ejected()


def test_refused_connection_and_an_error_of_its_own_count_whatever_the_time(good: Upstream) -> None:
    good.behave = status(500)
    calls = client(good, breaker=OPENS_AT_ONCE)
    assert calls.request("GET", "users", "/", deadline_s=0.3, usual_s=3.0).status == 500
    assert calls.breakers()["users"].state == "open"


def test_error_tells_that_it_says_nothing(good: Upstream) -> None:
    good.behave = hang(1.0)
    with pytest.raises(DeadlineExceeded) as late:
        client(good).request("POST", "users", "/", deadline_s=0.1)
    assert late.value.neutral


def test_second_try_with_what_is_left_is_held_against_nobody(good: Upstream) -> None:
    with upstream(hang(3.0)) as hung, upstream(hang(3.0)) as other:
        calls = client(hung, other, breaker=OPENS_AT_ONCE, outlier=EJECTS_AT_ONCE)
        with pytest.raises(DeadlineExceeded) as late:
            calls.request("GET", "users", "/", deadline_s=1.0, stream=True, relay=Relay(0.7, 60.0))
        assert late.value.attempts == 2
        assert len(calls.guard.upstream("users").outliers.ejected()) == 1
        assert calls.breakers()["users"].state == "open"


@pytest.mark.parametrize("addresses", [1, 3, 10])
def test_impatient_callers_keep_no_breaker_open_for_a_patient_one(good: Upstream, addresses: int) -> None:
    settings = BreakerSettings(min_calls=1, open_s=0.3, trials=3, successes=2)
    calls = client(good, breaker=settings, outlier=OutlierSettings(failures=1000))
    good.behave = status(503)
    calls.request("GET", "users", "/")
    assert calls.breakers()["users"].state == "open"
    good.behave = hang(0.05)
    time.sleep(0.35)
    served = 0
    for _ in range(14):
        for number in range(addresses):
            with pytest.raises(CallError):
                calls.request(
                    "GET", "users", "/", deadline_s=0.004, usual_s=3.0, source_key=f"10.0.0.{number}"
                )
        try:
            served += calls.request("GET", "users", "/", source_key="10.1.1.1").status == 200
        except CallError:
            time.sleep(0.05)
    assert calls.breakers()["users"].state == "closed"
    assert served >= 10


def test_patience_shares_the_time_of_a_call_between_its_attempts() -> None:
    kit = Patience(ClientSettings().attempt_timeout_s, 15.0, 0.5, shares=True)
    assert kit.attempt_s(15.0, another=True) == 5.0
    assert kit.attempt_s(3.0, another=True) == 1.5
    assert kit.enough_in_all(14.0, another=True)
    assert kit.enough_in_all(10.0, another=True), "both attempts have all that an attempt ever has"
    assert not kit.enough_in_all(3.0, another=True)
    gateway = Patience(30.0, 30.0, 0.5, shares=False)
    assert gateway.attempt_s(31.0, another=True) == 30.0
    assert not gateway.enough(1.0, another=False)
