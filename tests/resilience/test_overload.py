"""More than can be carried, through real gateways: what is refused, how fast, and that others do not notice.

Retries of an outage, and their bound, are in test_calls.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.eventually import eventually, time_scale
from tests.support.gateway_rig import Answer, Rig, Service, gateway_rig, metric
from tests.support.load import Report
from tests.support.scripted import Handler, ok
from tests.support.storm import (
    Capacity,
    Crowd,
    RunningUpstream,
    crowd,
    goodput,
    limited_upstream,
    per_second,
    typical_goodput,
)

OUTAGE_S = 8.0
JUDGED_AFTER_S = 30.0
CALM_S = 2.0
# Before the outage, and around the moment in question after it. Typical seconds are compared: a machine that is busy with
# other things stands still now and then, and has two seconds' answers in the next.
WINDOW_S = 5.0
# Of the small gateway: calls at once in all, for others than identity's services, and to one service.
GROUP, ORDINARY, UPSTREAM = 50, 40, 20
# Answers passed on at once: more than calls.
STREAMS = 2 * UPSTREAM
# Requests that one caller may have open.
OPEN = 5
BOTH = """
[[route]]
name = "both"
path = "/api/both"
timeout_s = 5.0
parts.people = { service = "people", path = "/api/people", required = true }
parts.wares = { service = "wares", path = "/api/wares" }
"""


@pytest.fixture(scope="module")
def wide() -> Iterator[Rig]:
    # The crowd has one address.
    with gateway_rig("business", env={"GATEWAY_OPEN_PER_SUBJECT": "10000"}) as started:
        yield started


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A gateway that is soon full, and composes what one service of identity and one of business know."""
    (tmp_path_factory.getbasetemp() / "business.toml").write_text(BOTH)
    env = {
        "GATEWAY_COMPOSE_DIR": str(tmp_path_factory.getbasetemp()),
        "GATEWAY_CALLS": str(GROUP),
        "GATEWAY_RESERVED_SHARE": "0.2",
        "GATEWAY_UPSTREAM_INITIAL": str(UPSTREAM),
        "GATEWAY_UPSTREAM_MAX": str(UPSTREAM),
        "GATEWAY_UPSTREAM_STREAMS": str(STREAMS),
        "GATEWAY_OPEN_PER_SUBJECT": str(OPEN),
    }
    with gateway_rig("business", env=env) as started:
        yield started


# -- the storm


@pytest.mark.long
def test_retry_storm_is_over_when_its_cause_is(wide: Rig) -> None:
    """Twice the load that the upstream can carry, 8 s in which it hangs, and users who ask three times as soon as they are refused.

    Every refusal makes another request, and what hung is still worked off for clients that have left: without a bound on what is under way the
    upstream would be busy with the past for good.
    """
    capacity = Capacity(16, 0.16)
    with limited_upstream(capacity) as upstream, _registered(wide, "stormy", upstream):
        headers = {"X-Edge-Route": "stormy", "X-Forwarded-For": "10.0.0.1"}
        with crowd(Crowd(wide.gateways[0].port, "/api/stormy", 2 * capacity.per_s, headers)) as running:
            time.sleep(CALM_S)
            calm = (time.monotonic(), time.monotonic() + WINDOW_S)
            time.sleep(WINDOW_S)
            trigger = time.monotonic()
            with upstream.hung():
                time.sleep(OUTAGE_S)
            late = (trigger + JUDGED_AFTER_S - WINDOW_S, trigger + JUDGED_AFTER_S + WINDOW_S - 1.0)
            time.sleep(late[0] - time.monotonic())
            begun = upstream.seen()
            time.sleep(late[1] - time.monotonic())
            begun = upstream.seen() - begun
            report = running.stop()
    table = per_second(report, trigger)
    before, after = typical_goodput(report, *calm), typical_goodput(report, *late)
    assert before >= 0.9 * capacity.per_s, f"less than it can carry:\n{table}"
    assert len(report.since(*calm).answers) >= 1.9 * capacity.per_s * WINDOW_S, f"no overload:\n{table}"
    assert goodput(report, trigger + 0.5, trigger + OUTAGE_S) == 0, f"no outage:\n{table}"
    # More than its capacity is luck, which is not asked for twice.
    assert after >= (1 - 0.05 * time_scale()) * min(before, capacity.per_s), (
        f"{after:.0f} of {before:.0f} a second:\n{table}"
    )
    # What the upstream does, it does for a client that still waits.
    good = goodput(report, *late) * (late[1] - late[0])
    assert begun <= 1.1 * good + capacity.workers, f"{begun} begun:\n{table}"
    _assert_refused_well(report, *calm)
    _assert_refused_well(report, *late)


def _assert_refused_well(report: Report, since_s: float, until_s: float) -> None:
    """At once, with a Retry-After that is not the same for all; and a request that is let in does not wait for long."""
    within = tuple(each for each in report.answers if since_s <= each.ended_s < until_s)
    refused = Report(within, ok=frozenset({503}))
    assert refused.latency_s(0.5) < 0.1 * time_scale()
    assert Report(within).latency_s(0.5) < 0.7 * time_scale()
    assert {each.retry_after for each in refused.good()} == {"1", "2", "3"}


@contextlib.contextmanager
def _registered(rig: Rig, name: str, upstream: RunningUpstream) -> Iterator[None]:
    meta = {"edge-path": f"/api/{name}", "edge-lane": "gateway", "edge-auth": "public", "edge-timeout": "3"}
    meta["edge-check-identity"] = "off"  # a foreign program
    rig.register(name, f"{name}-0", upstream.port, meta)
    rig.settle()
    try:
        yield
    finally:
        rig.deregister(f"{name}-0")


def _metric(rig: Rig, name: str, service: Service) -> float:
    return metric(rig, name, {"upstream": service.name})


# -- others


class Stuck:
    """Instances that take requests and answer none until they are released."""

    def __init__(self) -> None:
        self._released = threading.Event()
        self._pool = ThreadPoolExecutor(GROUP * 3)
        self._numbers = itertools.count()

    def __call__(self, handler: Handler) -> None:
        self._released.wait(30 * time_scale())
        handler.answer(200, Cache_Control="no-store")

    def fill(self, rig: Rig, service: Service, count: int) -> list[Future[Answer]]:
        """So many requests at once, of which some may be refused."""
        path = f"{service.path}/{next(self._numbers)}"
        return [
            self._pool.submit(rig.ask, "GET", f"{path}/{number}", service=service, timeout_s=60.0)
            for number in range(count)
        ]

    def release(self) -> None:
        self._released.set()

    def __enter__(self) -> Stuck:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._pool.shutdown()


def _in_flight(rig: Rig, service: Service) -> float:
    return metric(rig, "gateway_upstream_in_flight", {"upstream": service.name})


def test_full_upstream_leaves_others_untouched(small: Rig) -> None:
    with Stuck() as stuck, small.service(stuck) as slow, small.service(ok) as fast:
        asked = stuck.fill(small, slow, 3 * UPSTREAM)
        eventually(lambda: sum(each.done() for each in asked) == 2 * UPSTREAM, 10)
        assert _in_flight(small, slow) == UPSTREAM
        assert len(slow.requests) == UPSTREAM
        refused = [each.result() for each in asked if each.done()]
        assert {answer.status for answer in refused} == {503}
        assert {int(answer.headers["retry-after"]) for answer in refused} == {1, 2, 3}
        took_s = []
        for number in range(100):
            began = time.monotonic()
            assert small.ask("GET", f"{fast.path}/{number}", service=fast).status == 200
            took_s.append(time.monotonic() - began)
        assert sorted(took_s)[98] < 0.25 * time_scale()
        stuck.release()
        assert [each.result().status for each in asked].count(200) == UPSTREAM
        scopes = {"upstream": slow.name, "scope": "upstream"}
        assert metric(small, "gateway_shed_total", scopes) == 2 * UPSTREAM
        assert _metric(small, "gateway_shed_total", fast) == 0
        assert _in_flight(small, slow) == 0
        # The breaker has nothing to do with it: what was refused here was never sent.
        assert _metric(small, "service_upstream_breaker", slow) == 0


def test_identity_is_served_when_business_fills_the_group(small: Rig) -> None:
    with contextlib.ExitStack() as stack:
        stuck = stack.enter_context(Stuck())
        slow = [stack.enter_context(small.service(stuck)) for _ in range(3)]
        wares = stack.enter_context(small.service(ok, name="wares"))
        people = stack.enter_context(small.service(ok, name="people", domain="identity"))
        asked = [each for service in slow for each in stuck.fill(small, service, UPSTREAM)]
        eventually(lambda: sum(_in_flight(small, service) for service in slow) == ORDINARY, 10)
        began = time.monotonic()
        refused = small.ask("GET", wares.path, service=wares)
        assert time.monotonic() - began < 0.25 * time_scale()
        problem = json.loads(refused.body)
        assert (refused.status, problem["layer"], problem["failed"]) == (503, "gateway", "gateway")
        assert refused.headers["retry-after"] in ("1", "2", "3")
        for _ in range(30):
            answer = small.ask("GET", "/api/both")
            both = json.loads(answer.body)
            assert answer.status == 200, answer
            assert (both["people"], both["wares"]) == ({}, None)
        assert (len(people.requests), len(wares.requests)) == (30, 0)
        assert metric(small, "gateway_shed_total", {"upstream": "wares", "scope": "group"}) == 31
        assert _metric(small, "gateway_shed_total", people) == 0
        stuck.release()
        assert [each.result().status for each in asked].count(200) == ORDINARY
        assert json.loads(small.ask("GET", "/api/both").body)["wares"] == {}


def test_open_streams_take_no_calls_place(small: Rig) -> None:
    """More streams than calls may wait for their head, each held open, and requests to the same service pass."""
    ended = threading.Event()

    def behave(handler: Handler) -> None:
        if "/stream" not in handler.path:
            handler.answer(200, Cache_Control="no-store")
            return
        handler.begin_chunks()
        handler.chunk(b"data: 1\n\n")
        ended.wait(30 * time_scale())
        handler.chunk(b"")

    with contextlib.ExitStack() as stack, small.service(behave) as chat:
        stack.callback(ended.set)
        for number in range(STREAMS):
            answer = stack.enter_context(small.open("GET", f"{chat.path}/stream/{number}", service=chat))
            assert answer.status == 200
            assert answer.read1(64) == b"data: 1\n\n"
        assert _metric(small, "gateway_upstream_streams", chat) == STREAMS
        assert _in_flight(small, chat) == 0
        # Streams are full, and other calls find room.
        for method, known in (("GET", {"stored_answer": False}), ("POST", {"done": "unknown"})):
            refused = small.ask(method, f"{chat.path}/stream/x", service=chat)
            assert (refused.status, json.loads(refused.body)["known"]) == (503, known)
        assert _metric(small, "gateway_upstream_streams", chat) == STREAMS
        for number in range(20):
            assert small.ask("GET", f"{chat.path}/{number}", service=chat).status == 200
        ended.set()
        eventually(lambda: _metric(small, "gateway_upstream_streams", chat) == 0, 5)


@pytest.mark.parametrize("signed", [False, True])
def test_one_caller_holds_so_many_open_requests_and_others_as_many(small: Rig, signed: bool) -> None:
    ended = threading.Event()

    def behave(handler: Handler) -> None:
        if "/stream" not in handler.path:
            return handler.answer(200, Cache_Control="no-store")
        handler.begin_chunks()
        handler.chunk(b"data: 1\n\n")
        return ended.wait(30 * time_scale()) and None

    def asks(who: str) -> dict[str, Any]:
        """By a token, from ever other addresses; or by the address."""
        if signed:
            return {"headers": {"Authorization": f"Bearer {small.signer.token(who)}"}}
        return {"client": f"10.9.9.{len(who)}"}

    with contextlib.ExitStack() as stack, small.service(behave) as chat:
        stack.callback(ended.set)
        path = f"{chat.path}/stream"
        first = stack.enter_context(contextlib.ExitStack())
        held = [
            each.enter_context(small.open("GET", path, service=chat, **asks("a")))
            for each in (first, *[stack] * (OPEN - 1))
        ]
        assert [answer.status for answer in held] == [200] * OPEN
        refused = small.ask("GET", f"{chat.path}/1", service=chat, **asks("a"))
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert small.ask("GET", f"{chat.path}/1", service=chat, **asks("bb")).status == 200
        first.close()
        eventually(lambda: small.ask("GET", f"{chat.path}/1", service=chat, **asks("a")).status == 200, 5)
