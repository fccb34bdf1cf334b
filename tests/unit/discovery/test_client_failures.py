"""ServiceClient when instances fail: what is retried, where, for how long, and when nothing is sent any more."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from discovery import (
    BreakerOpen,
    BreakerSettings,
    BudgetExhausted,
    ClientSettings,
    ConnectFailed,
    DeadlineExceeded,
    Instance,
    NoInstance,
    NotSent,
    OutlierSettings,
    ResponseLost,
    ResponseTimeout,
    RetrySettings,
    ServiceClient,
    StaticView,
)
from tests.support.eventually import time_scale
from tests.support.scripted import Handler, Upstream, upstream
from tests.unit.discovery.calling import client, dead, hang, status

NO_EJECTION = OutlierSettings(failures=1000)


def test_refused_connection_is_retried_on_another_instance_even_for_post(good: Upstream) -> None:
    calls = client(dead(), good)
    response = calls.request("POST", "users", "/", body=b"x", balance="first")
    assert (response.status, response.attempts) == (200, 2)
    assert len(good.requests) == 1


@pytest.mark.parametrize(("code", "final", "attempts"), [(502, 200, 2), (503, 503, 1), (504, 504, 1)])
def test_get_is_retried_after_502_and_neither_after_a_refusal_nor_a_timeout_of_the_instances(
    good: Upstream, code: int, final: int, attempts: int
) -> None:
    with upstream(status(code)) as bad:
        first = bad.instance(id="users-0")
        response = client(first, good).request("GET", "users", "/", balance="first")
    assert (response.status, response.attempts, len(bad.requests)) == (final, attempts, 1)


def test_two_tries_at_most_reach_an_instance() -> None:
    with upstream(lambda handler: handler.hang_up()) as bad:
        with pytest.raises(ResponseLost):
            client(bad).request("GET", "users", "/")
        assert len(bad.requests) == 2


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_what_changes_something_is_retried_with_an_idempotency_key_only(good: Upstream, method: str) -> None:
    with upstream(status(502)) as bad:
        first = bad.instance(id="users-0")
        assert client(first, good).request(method, "users", "/", balance="first").status == 502
        with_key = {"idempotency-key": "k"}
        assert (
            client(first, good).request(method, "users", "/", balance="first", headers=with_key).status == 200
        )


def cut(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"half")
    handler.hang_up()


@pytest.mark.parametrize("lose", [Handler.hang_up, cut], ids=["unheard", "in its body"])
def test_lost_answer_is_retried_for_get_and_raised_for_post(
    good: Upstream, lose: Callable[[Handler], None]
) -> None:
    with upstream(lose) as bad:
        first = bad.instance(id="users-0")
        assert client(first, good).request("GET", "users", "/", balance="first").attempts == 2
        with pytest.raises(ResponseLost) as lost:
            client(first, good).request("POST", "users", "/", balance="first")
    assert (lost.value.attempts, lost.value.instance_id) == (1, "users-0")
    assert len(bad.requests) == 2
    assert len(good.requests) == 1


def test_hung_instance_leaves_time_for_another(good: Upstream) -> None:
    with upstream(hang(3)) as hung:
        first = hung.instance(id="users-0")
        began = time.monotonic()
        response = client(first, good).request("GET", "users", "/", balance="first", deadline_s=1.0)
        assert (response.status, response.attempts) == (200, 2)
        assert 0.4 < time.monotonic() - began < 0.9 * time_scale()


def test_deadline_covers_all_attempts() -> None:
    with upstream(hang(3)) as one, upstream(hang(3)) as two:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded) as late:
            client(one, two, retry=RetrySettings(attempts=2)).request("GET", "users", "/", deadline_s=0.5)
        assert 0.45 < time.monotonic() - began < 0.8 * time_scale()
    assert late.value.sent
    assert late.value.attempts == 2


def test_post_to_a_hung_instance_times_out_without_retry(good: Upstream) -> None:
    with upstream(hang(3)) as hung:
        first = hung.instance(id="users-0")
        calls = client(first, good, attempt_timeout_s=0.2)
        with pytest.raises(ResponseTimeout):
            calls.request("POST", "users", "/", balance="first", deadline_s=5)
    assert not good.requests


def test_no_instance_is_told_apart(good: Upstream) -> None:
    with pytest.raises(NoInstance):
        client().request("GET", "users", "/")
    with pytest.raises(NoInstance):
        client(good.instance(status="critical")).request("GET", "users", "/")
    with pytest.raises(NoInstance):
        client(good.instance(maintenance=True)).request("GET", "users", "/")


def test_all_refused_ends_in_connect_failed() -> None:
    with pytest.raises(ConnectFailed) as failed:
        client(dead("a"), dead("b")).request("GET", "users", "/")
    assert failed.value.attempts == 3


def test_retry_budget_bounds_the_load_on_a_failing_service() -> None:
    with upstream(status(502)) as bad:
        calls = client(bad, outlier=NO_EJECTION, breaker=BreakerSettings(min_calls=1000), connections=4)
        for _ in range(100):
            assert calls.request("GET", "users", "/").status == 502
    assert 100 + 3 <= len(bad.requests) <= 121


def test_spent_budget_is_told_when_nothing_was_sent() -> None:
    calls = client(
        dead("a"), breaker=BreakerSettings(min_calls=1000), retry=RetrySettings(floor=0, ratio=0.0)
    )
    with pytest.raises(BudgetExhausted) as spent:
        calls.request("GET", "users", "/")
    assert isinstance(spent.value.__cause__, ConnectFailed)


def test_open_breaker_gives_an_instance_that_comes_a_chance_at_once(good: Upstream) -> None:
    view = StaticView([dead()])
    settings = ClientSettings(breaker=BreakerSettings(min_calls=4, open_s=60), outlier=NO_EJECTION)
    calls = ServiceClient(view, settings=settings)
    for _ in range(4):
        with pytest.raises(NotSent):
            calls.request("POST", "users", "/")
    with pytest.raises(BreakerOpen):
        calls.request("POST", "users", "/")
    view.replace([good.instance()])
    statuses = {calls.request("GET", "users", "/").status for _ in range(10)}
    assert (statuses, calls.breakers()["users"].state) == ({200}, "closed")


def test_open_breaker_does_not_care_for_an_instance_that_goes() -> None:
    gone = dead()
    view = StaticView([gone, dead("users-1-dead")])
    settings = ClientSettings(breaker=BreakerSettings(min_calls=4, open_s=60), outlier=NO_EJECTION)
    calls = ServiceClient(view, settings=settings)
    for _ in range(4):
        with pytest.raises(NotSent):
            calls.request("POST", "users", "/")
    view.replace([gone])
    with pytest.raises(BreakerOpen):
        calls.request("GET", "users", "/")


def test_iterator_body_not_begun_is_sent_to_another_instance(good: Upstream) -> None:
    response = client(dead(), good).request("PUT", "users", "/", balance="first", body=iter([b"ab"]))
    assert (response.status, response.attempts) == (200, 2)
    assert good.requests[0].body == b"ab"


def test_instance_that_accepts_nothing_costs_one_connect_timeout(good: Upstream) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        filler = [socket.socket() for _ in range(4)]
        for each in filler:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        first = Instance("users", "users-0", "node-1", "127.0.0.1", full.getsockname()[1])
        began = time.monotonic()
        response = client(first, good, connect_timeout_s=0.2).request("POST", "users", "/", balance="first")
        assert (response.status, response.attempts) == (200, 2)
        assert time.monotonic() - began < 0.6 * time_scale()
        for each in filler:
            each.close()
