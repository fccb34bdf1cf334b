"""Calls through a gateway while instances die, hang and break off: what is retried, what is not, and what a client sees."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.eventually import time_scale
from tests.support.gateway_rig import Answer, Rig, Service, dead, metric
from tests.support.scripted import Handler, ok

CALLERS = 50
# More than the breaker's minimum of calls (20), so that a wrong count would open it.
LEAVERS = 25
BODY = bytes(range(256)) * 800  # 200 KiB
LONG = bytes(range(256)) * 4096  # 1 MiB: more than is kept to be sent again

pytestmark = pytest.mark.shares("calls")


def attempts(rig: Rig, service: Service, outcome: str = "") -> float:
    """Attempts at instances of the service, those that ended in `outcome` or all."""
    labels = {"upstream": service.name} | ({"outcome": outcome} if outcome else {})
    return metric(rig, "service_upstream_attempts_total", labels)


def calls(rig: Rig, service: Service, outcome: str = "") -> float:
    labels = {"upstream": service.name} | ({"outcome": outcome} if outcome else {})
    return metric(rig, "service_upstream_calls_total", labels)


def together(count: int, ask: Callable[[int], Answer]) -> list[Answer]:
    """The answers to `count` requests that leave at the same time."""
    gate = threading.Barrier(count)

    def one(number: int) -> Answer:
        gate.wait(10)
        return ask(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def until(happened: Callable[[], object], act: Callable[[], None]) -> None:
    """Repeat `act` until what it is to bring about has happened: which instance is asked first is left to chance."""
    for _ in range(20):
        act()
        if happened():
            return
    raise AssertionError("the fault never happened")


def hang_up(handler: Handler) -> None:
    handler.hang_up()


def busy(handler: Handler) -> None:
    handler.answer(503)


def hang(handler: Handler) -> None:
    """Takes the request and answers too late for any caller."""
    time.sleep(3)
    handler.answer()


def test_one_dead_of_three_costs_none_of_fifty_concurrent_gets(rig: Rig) -> None:
    with rig.service(ok, dead, ok) as pears:
        answers = together(CALLERS, lambda n: rig.ask("GET", f"{pears.path}/{n}", service=pears))
        assert [answer.status for answer in answers] == [200] * CALLERS
        assert attempts(rig, pears, "ConnectFailed") >= 1, "the dead instance was never tried"
        # A call that met the dead one went to another, and none went twice where it was answered.
        paths = sorted(seen.path for seen in pears.requests)
        assert paths == sorted(f"{pears.path}/{n}" for n in range(CALLERS))


def test_a_late_answer_costs_a_post_one_try_and_a_get_two_and_a_second_more_than_its_route_waits(
    rig: Rig,
) -> None:
    with rig.service(hang, timeout="1") as pears:
        answer = rig.ask("POST", pears.path, service=pears, body=b"{}")
        assert answer.status == 504
        assert [seen.body for seen in pears.requests] == [b"{}"], "received more than once, or never"
        # The same fault is tried again where that is allowed: it is the method that forbids it.
        began = time.monotonic()
        assert rig.ask("GET", pears.path, service=pears).status == 504
        assert 1.9 <= time.monotonic() - began < 2.0 + 0.5 * time_scale()
        assert sum(seen.method == "GET" for seen in pears.requests) == 2


@pytest.mark.parametrize("broken", [hang_up, busy])
def test_post_that_reached_an_instance_which_failed_is_not_sent_again(
    rig: Rig, broken: Callable[[Handler], None]
) -> None:
    with rig.service(broken, broken) as pears:
        answer = rig.ask("POST", pears.path, service=pears, body=b"{}")
        assert answer.status in (502, 503)
        assert len(pears.requests) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_post_whose_connection_is_refused_goes_to_another_with_its_whole_body(
    rig: Rig, chunked: bool
) -> None:
    with rig.service(dead, ok) as pears:

        def post() -> None:
            body = iter([LONG[:1000], LONG[1000:]]) if chunked else LONG
            assert rig.ask("POST", pears.path, service=pears, body=body).status == 200

        until(lambda: attempts(rig, pears, "ConnectFailed"), post)
        sent = calls(rig, pears)
        assert attempts(rig, pears, "ConnectFailed") == 1
        assert attempts(rig, pears) == sent + 1, "one retry, and only one"
        assert [seen.body == LONG for seen in pears.requests] == [True] * int(sent)


def test_post_with_an_idempotency_key_is_retried_on_another_instance(rig: Rig) -> None:
    with rig.service(hang_up, ok) as pears:

        def post() -> None:
            sent = {"Idempotency-Key": f"key-{len(pears.requests)}"}
            assert rig.ask("POST", pears.path, service=pears, headers=sent, body=BODY).status == 200

        until(lambda: pears.upstreams[0].requests, post)
        failed, retried = pears.upstreams[0].requests[0], pears.upstreams[1].requests[-1]
        assert failed.body == retried.body == BODY
        assert failed.headers["idempotency-key"] == retried.headers["idempotency-key"]


def test_second_try_gets_no_more_than_the_first_has_left(rig: Rig) -> None:
    deadline_s, first_s = 1.5, 0.6
    began = 0.0
    tries: list[tuple[float, float]] = []
    lock = threading.Lock()

    def slow_then_hung(handler: Handler) -> None:
        with lock:
            tries.append((time.monotonic() - began, int(handler.seen.headers["x-deadline-ms"]) / 1000))
            first = len(tries) == 1
        time.sleep(first_s if first else 3)
        handler.hang_up()

    with rig.service(slow_then_hung, slow_then_hung, slow_then_hung) as pears:
        began = time.monotonic()
        answer = rig.ask(
            "GET", pears.path, service=pears, headers={"X-Deadline-Ms": str(int(deadline_s * 1000))}
        )
        took_s = time.monotonic() - began
    assert answer.status == 504
    assert len(tries) >= 2, "never tried again"
    assert tries[1][0] >= first_s
    for at_s, left_s in tries:
        # An instance hears how long it has: never past the caller's own deadline.
        assert at_s + left_s <= deadline_s + 0.1 * time_scale(), tries
    assert tries[1][1] <= deadline_s - first_s
    assert took_s <= deadline_s + 0.3 * time_scale()


def bad_gateway(handler: Handler) -> None:
    handler.answer(502)


@pytest.mark.parametrize("broken", [hang_up, dead, bad_gateway])
def test_full_outage_costs_a_fifth_more_attempts_at_most(rig: Rig, broken: Callable[[Handler], None]) -> None:
    with rig.service(broken, broken, broken) as pears:
        answers = together(CALLERS, lambda n: rig.ask("GET", f"{pears.path}/{n}", service=pears))
        assert all(answer.status in (502, 503) for answer in answers)
        sent = calls(rig, pears) - calls(rig, pears, "BreakerOpen")
        retries = attempts(rig, pears) - sent
        assert sent >= 20, "too few to tell"
        assert 1 <= retries <= max(3, 0.2 * sent), (retries, sent)


def test_clients_that_leave_a_stream_do_not_open_the_breaker(rig: Rig) -> None:
    cut = threading.Semaphore(0)

    def endless(handler: Handler) -> None:
        if handler.path.endswith("/whole"):
            return handler.answer()
        handler.begin_chunks()
        try:
            for _ in range(1000):
                handler.chunk(b"data: tick\n\n")
                time.sleep(0.01)
        except OSError:
            cut.release()
            handler.close_connection = True

    with rig.service(endless) as pears:

        def leave(_: int) -> None:
            with rig.open("GET", pears.path, service=pears) as stream:
                assert stream.status == 200
                assert stream.read1(4).startswith(b"data")

        with ThreadPoolExecutor(LEAVERS) as pool:
            list(pool.map(leave, range(LEAVERS)))
        for _ in range(LEAVERS):
            assert cut.acquire(timeout=5 * time_scale()), "the upstream's work was not cancelled"
        answer = rig.ask("GET", f"{pears.path}/whole", service=pears)
        assert answer.status == 200
        assert calls(rig, pears, "BreakerOpen") == 0
        assert metric(rig, "service_upstream_ejections_total", {"upstream": pears.name}) == 0


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_instance_that_dies_in_the_middle_of_a_body_is_seen_by_the_client(rig: Rig, framing: str) -> None:
    half = BODY[: len(BODY) // 2]

    def torn(handler: Handler) -> None:
        if framing == "length":
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(BODY)))
            handler.end_headers()
            handler.wfile.write(half)
        else:
            handler.begin_chunks()
            handler.chunk(half)
        handler.hang_up()

    with rig.service(torn, torn) as pears:
        with pytest.raises((http.client.HTTPException, OSError)) as broken:
            rig.ask("GET", pears.path, service=pears)
        assert not isinstance(broken.value, TimeoutError)
        # Its beginning was on the way to the client: too late to ask another instance.
        assert len(pears.requests) == 1


def test_server_sent_events_are_passed_on_at_once(rig: Rig) -> None:
    arrived = [threading.Event() for _ in range(5)]
    waited: list[bool] = []

    def one_by_one(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for number, event in enumerate(arrived):
            handler.chunk(b"data: %d\n\n" % number)
            # The next event is sent only once the client has had this one: to hold it back is to hold all back.
            waited.append(event.wait(5 * time_scale()))
        handler.chunk(b"")

    with rig.service(one_by_one) as pears, rig.open("GET", pears.path, service=pears) as stream:
        assert stream.getheader("Content-Type") == "text/event-stream"
        for number, event in enumerate(arrived):
            assert stream.readline() == b"data: %d\n" % number
            assert stream.readline() == b"\n"
            event.set()
        assert stream.read() == b""
    assert waited == [True] * len(arrived)
