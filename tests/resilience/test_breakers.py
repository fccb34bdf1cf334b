"""What opens a breaker, what it lets through and which services it leaves alone: real gateways in front of real upstreams.

The finer points of the machine are in tests/unit/discovery/test_breaker.py, of the sharing in tests/unit/gateway/sharing;
clients that leave a stream are in test_calls.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from tests.resilience.conftest import OPEN_S, TRIALS
from tests.support.eventually import eventually, time_scale
from tests.support.gateway_rig import Rig, Service, metric
from tests.support.matrix import one_always
from tests.support.scripted import Handler, ok

pytestmark = pytest.mark.shares("calls")

MIN_CALLS = 20
LEVELS = {0: "closed", 1: "half-open", 2: "open"}


def status(code: int) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(code)


def one_in_ten_good(code: int) -> Callable[[Handler], None]:
    numbers = itertools.count(1)
    return lambda handler: handler.answer(code if next(numbers) % 10 else 200)


def call(rig: Rig, service: Service, gateway: int = 0, **options: str) -> int:
    return rig.ask("POST", service.path, service=service, gateway=gateway, body=b"{}", **options).status


def state(rig: Rig, service: Service, gateway: int = 0) -> str:
    return LEVELS[int(metric(rig, "service_upstream_breaker", {"upstream": service.name}, gateway))]


def open_it(rig: Rig, service: Service) -> None:
    """Many calls at a time: enough of them must fall into one window, however slow the machine is."""
    for _ in range(10):
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda _: call(rig, service), range(MIN_CALLS)))
        if state(rig, service) == "open":
            return
    raise AssertionError("the breaker stays closed")


def tripped(rig: Rig, service: Service, gateway: int = 0) -> dict[str, float]:
    """How often the breaker opened, by cause."""
    labels = {"upstream": service.name, "state": "open"}
    causes = ("local", "shared", "hand")
    name = "gateway_breaker_transitions_total"
    return {each: metric(rig, name, labels | {"cause": each}, gateway) for each in causes}


def at(rig: Rig, service: Service, gateway: int) -> float:
    """When the breaker opened in this process, by its log: Unix time in seconds."""
    lines = [
        json.loads(each) for each in rig.gateways[gateway].log_text.splitlines() if "breaker changed" in each
    ]
    (line,) = (x for x in lines if x["service"] == service.name and x["state"] == "open")
    return datetime.fromisoformat(line["timestamp"]).timestamp()


# -- what opens it


@pytest.mark.parametrize("code", [500, 503])
def test_ninety_percent_errors_open_it_though_every_tenth_call_is_good(rig: Rig, code: int) -> None:
    with rig.service(one_in_ten_good(code)) as pears:
        answers = [call(rig, pears) for _ in range(MIN_CALLS + 10)]
        assert answers.count(200) == 2, "every tenth call was to be good"
        assert state(rig, pears) == "open"
        # The last of the minimum was a good one: the next failure opens it.
        assert len(pears.requests) == MIN_CALLS + 1
        assert answers[MIN_CALLS + 1 :] == [503] * 9


def test_below_the_minimum_of_calls_it_stays_closed(rig: Rig) -> None:
    with rig.service(status(503)) as pears:
        assert [call(rig, pears) for _ in range(MIN_CALLS - 1)] == [503] * (MIN_CALLS - 1)
        assert len(pears.requests) == MIN_CALLS - 1
        assert state(rig, pears) == "closed"
        call(rig, pears)
        assert state(rig, pears) == "open", "one more opens it"


@pytest.mark.parametrize("code", one_always(404, 400, 401, 409, 429))
def test_callers_mistakes_leave_it_closed(rig: Rig, code: int) -> None:
    with rig.service(status(code)) as pears:
        assert [call(rig, pears) for _ in range(2 * MIN_CALLS)] == [code] * (2 * MIN_CALLS)
        assert (state(rig, pears), tripped(rig, pears)["local"]) == ("closed", 0)


def test_one_client_with_a_request_that_fails_does_not_open_it_for_others(rig: Rig) -> None:
    def poisoned(handler: Handler) -> None:
        handler.answer(500 if handler.seen.path.endswith("/poison") else 200)

    with rig.service(poisoned) as pears:

        def poison() -> int:
            path = f"{pears.path}/poison"
            return rig.ask("POST", path, service=pears, client="10.66.66.66", body=b"{}").status

        for _ in range(5):
            assert call(rig, pears) == 200
        assert {poison() for _ in range(3 * MIN_CALLS)} == {500}
        assert [call(rig, pears) for _ in range(5)] == [200] * 5
        assert tripped(rig, pears)["local"] == 0


@pytest.mark.parametrize("addresses", one_always(3, 1, 10))
def test_impatient_callers_leave_it_closed_and_keep_none_open(rig: Rig, addresses: int) -> None:
    """Callers that give 30 ms where 30 s are usual, as a service may that has no more time itself."""
    slow = threading.Event()

    def behave(handler: Handler) -> None:
        time.sleep(0.15 if slow.is_set() else 0)
        handler.answer(200 if slow.is_set() else 503)

    def impatient(number: int) -> int:
        hurried = {"X-Deadline-Ms": "30"}
        client = f"10.66.66.{number % addresses}"
        return rig.ask("GET", pears.path, service=pears, client=client, headers=hurried).status

    def attacked(number: int) -> int:
        times = 0
        while not ended.wait(0.01):
            times += impatient(number) > 0
        return times

    ended = threading.Event()
    with rig.service(behave) as pears, ThreadPoolExecutor(10) as pool:
        slow.set()
        assert set(pool.map(impatient, range(2 * MIN_CALLS))) == {504}
        assert (state(rig, pears), call(rig, pears)) == ("closed", 200)
        slow.clear()
        open_it(rig, pears)
        slow.set()
        attack = [pool.submit(attacked, number) for number in range(10)]
        try:
            eventually(lambda: [call(rig, pears) for _ in range(2)] == [200, 200], OPEN_S + 2)
        finally:
            ended.set()
        assert min(each.result(10) for each in attack) > 0
        assert tripped(rig, pears)["local"] == 1


# -- what it lets through, and what it leaves alone


def test_half_open_with_twenty_waiting_lets_only_the_trials_through(rig: Rig) -> None:
    gate = threading.Event()

    def slow(handler: Handler) -> None:
        gate.wait(10)
        handler.answer()

    with rig.service(status(503)) as pears, ThreadPoolExecutor(20) as pool:
        open_it(rig, pears)
        pears.upstreams[0].behave = slow
        before = len(pears.requests)
        time.sleep(OPEN_S)
        waiting = [pool.submit(call, rig, pears, gateway) for gateway in (0, 1) for _ in range(10)]
        try:
            eventually(lambda: sum(each.done() for each in waiting) >= 20 - TRIALS, 5)
            assert len(pears.requests) - before <= TRIALS
        finally:
            gate.set()
        answers = [each.result(15) for each in waiting]
        passed = len(pears.requests) - before
        assert 1 <= passed <= TRIALS
        assert (answers.count(200), answers.count(503)) == (passed, 20 - passed)
        eventually(lambda: state(rig, pears) == state(rig, pears, 1) == "closed", 3)


def test_other_services_are_untouched_by_an_open_one(rig: Rig) -> None:
    with rig.service(status(503)) as pears, rig.service(ok) as plums:
        open_it(rig, pears)
        answers = []
        for _ in range(MIN_CALLS):
            answers.append((call(rig, pears), call(rig, plums)))
        assert answers == [(503, 200)] * MIN_CALLS
        assert (len(plums.requests), state(rig, plums)) == (MIN_CALLS, "closed")


def took_together(action: Callable[[], object], threads: int) -> float:
    """Seconds for so many threads to do this at once."""
    gate = threading.Barrier(threads + 1)

    def run() -> None:
        gate.wait(10)
        action()

    with ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(run) for _ in range(threads)]
        gate.wait(10)
        begun = time.monotonic()
        for each in done:
            each.result(15)
        return time.monotonic() - begun


def wait_a_bit(handler: Handler) -> None:
    time.sleep(0.2)
    handler.answer()


def test_eight_requests_take_as_long_as_one_through_a_gateway(rig: Rig) -> None:
    with rig.service(wait_a_bit) as pears:
        took_s = took_together(lambda: call(rig, pears), 8)
        assert len(pears.requests) == 8
        print(f"eight calls of 0.2 s through one gateway: {took_s:.3f} s")
        assert 0.2 <= took_s < 0.2 + 0.4 * time_scale()


# -- together


def test_all_processes_open_within_100_ms_of_one(rig: Rig) -> None:
    took_s = []
    for _ in range(3):
        with rig.service(status(503)) as pears:
            assert call(rig, pears, 1) == 503
            opened_s = time.monotonic()
            open_it(rig, pears)
            eventually(lambda service=pears: state(rig, service, 1) == "open", 2)
            assert (tripped(rig, pears)["local"], tripped(rig, pears, 1)["shared"]) == (1, 1)
            took_s.append(at(rig, pears, 1) - at(rig, pears, 0))
            before = len(pears.requests)
            assert call(rig, pears, 1) == 503
            # On a machine that stood still for that long, it is a trial.
            if time.monotonic() - opened_s < OPEN_S:
                assert len(pears.requests) == before, "the other one sends nothing any more"
    print(f"the second process was open after {[f'{1000 * each:.1f} ms' for each in took_s]}")
    assert sorted(took_s)[1] < 0.1 * time_scale()


def test_without_redis_both_break_alone_and_in_no_more_time(rig: Rig) -> None:
    assert rig.redis is not None
    with rig.service(status(503)) as pears:
        rig.redis.kill()
        try:
            for gateway in (0, 1):
                begun = time.monotonic()
                for _ in range(MIN_CALLS + 5):
                    assert call(rig, pears, gateway) == 503
                took_s = (time.monotonic() - begun) / (MIN_CALLS + 5)
                assert took_s < 0.1 * time_scale(), f"{took_s:.3f} s a call"
                assert (state(rig, pears, gateway), tripped(rig, pears, gateway)["local"]) == ("open", 1)
                assert len(pears.requests) == MIN_CALLS * (gateway + 1)
            assert tripped(rig, pears, 1)["shared"] == 0, "the fault did not happen"
        finally:
            rig.redis.start()
        pears.upstreams[0].behave = ok
        for gateway in (0, 1):
            eventually(lambda gateway=gateway: call(rig, pears, gateway) == 200, 3 * OPEN_S + 2)
            eventually(
                lambda gateway=gateway: call(rig, pears, gateway) and state(rig, pears, gateway) == "closed",
                3,
            )
