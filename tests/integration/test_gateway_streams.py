"""Bodies and streams through a real gateway: in little memory, and cancelled when no client waits for them.

What becomes of them when an instance fails is in tests/resilience/test_calls.py.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest

from tests.support.eventually import eventually, time_scale
from tests.support.gateway_rig import Rig, metric
from tests.support.scripted import Handler, ok

MIB = 1024 * 1024
BIG = 50 * MIB
RSS_GROWTH = 20 * MIB
BUSINESS, AI = 0, 3

pytestmark = pytest.mark.shares("gateways")


# -- bodies


def test_fifty_megabytes_pass_both_ways_in_little_memory(rig: Rig) -> None:
    def behave(handler: Handler) -> None:
        got = len(handler.seen.body)
        handler.seen.body = b""
        handler.send_response(200)
        handler.send_header("Content-Length", str(BIG))
        handler.send_header("X-Got", str(got))
        handler.end_headers()
        for _ in range(BIG // MIB):
            handler.wfile.write(b"x" * MIB)

    with rig.service(behave) as pears:
        before = rig.gateways[BUSINESS].most_memory(reset=True)
        body = (b"y" * MIB for _ in range(BIG // MIB))
        sent = {"Content-Length": str(BIG)}
        with rig.open("POST", pears.path, service=pears, body=body, headers=sent) as response:
            size = 0
            while data := response.read1(MIB):
                size += len(data)
        assert (size, response.headers["X-Got"]) == (BIG, str(BIG))
        assert rig.gateways[BUSINESS].most_memory() - before < RSS_GROWTH


def test_a_body_above_the_limit_is_refused_declared_or_not(rig: Rig) -> None:
    with rig.service(ok) as pears:
        declared = rig.ask("POST", pears.path, service=pears, headers={"Content-Length": str(65 * MIB)})
        assert declared.status == 413
        pieces = (b"x" * MIB for _ in range(65))
        # The answer may come before all has been sent, and the rest meet a closed connection.
        with contextlib.suppress(OSError):
            assert rig.ask("POST", pears.path, service=pears, body=pieces).status == 413
        assert not [seen for seen in pears.requests if len(seen.body) > 64 * MIB]
        assert _failures(rig, pears.name) == 0


def test_a_body_that_breaks_off_or_stalls_is_not_the_upstreams_failure(rig: Rig) -> None:
    size = 2 * MIB
    with rig.service(ok) as pears:
        for sent, ending in ((10, "400"), (10, "408"), (MIB, "400"), (MIB, "408")):
            with socket.create_connection(("127.0.0.1", rig.gateways[BUSINESS].port), timeout=10) as client:
                head = f"POST {pears.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n"
                head += "".join(f"{name}: {value}\r\n" for name, value in rig.headers(pears).items())
                client.sendall(head.encode() + b"\r\n" + b"x" * sent)
                if ending == "400":
                    client.shutdown(socket.SHUT_WR)
                line = client.recv(1024).split(b"\r\n")[0]
                assert ending.encode() in line or (
                    ending == "400" and line in (b"", b"HTTP/1.1 499 Error")
                ), line
        assert _failures(rig, pears.name) == 0
        assert rig.ask("POST", pears.path, service=pears, body=b"x").status == 200


# -- streams


@pytest.mark.parametrize("begun", [False, True], ids=["before the answer", "in a quiet stream"])
def test_a_client_that_leaves_frees_the_upstream_and_opens_no_breaker(rig: Rig, begun: bool) -> None:
    closed = threading.Semaphore(0)

    def waits(handler: Handler) -> None:
        if handler.path.endswith("/ok"):
            return handler.answer()
        if begun:
            handler.begin_chunks()
            handler.chunk(b"data: 1\n\n")
        handler.connection.settimeout(10)
        if handler.connection.recv(1) == b"":
            closed.release()
        handler.close_connection = True
        return None

    with rig.service(waits) as pears:
        gone = metric(rig, "gateway_clients_gone_total", {})
        head = f"GET {pears.path}/x HTTP/1.1\r\nHost: x\r\nX-Edge-Route: {pears.name}\r\n\r\n".encode()
        for number in range(1, 26):  # enough to open a breaker, if they counted
            with socket.create_connection(("127.0.0.1", rig.gateways[BUSINESS].port), timeout=10) as client:
                client.sendall(head)
                eventually(lambda number=number: len(pears.requests) >= number, 5)
                if begun:
                    assert client.recv(1024)
        for _ in range(25):
            assert closed.acquire(timeout=5 * time_scale()), "the upstream did not see its connection closed"
        # It is counted once the upstream has been left.
        eventually(lambda: metric(rig, "gateway_clients_gone_total", {}) - gone == 25, 5)
        assert metric(rig, "service_upstream_breaker", {"upstream": pears.name}) == 0
        assert rig.ask("GET", f"{pears.path}/ok", service=pears).status == 200


def test_an_openai_stream_that_breaks_tells_so_in_an_event(rig: Rig) -> None:
    def breaks(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.chunk(b'data: {"choices": []}\n\n')
        handler.hang_up()

    with rig.service(breaks, name="chat", path="/v1", domain="ai") as chat:
        answer = rig.ask("POST", "/v1/chat/completions", service=chat, gateway=AI, body=b"{}")
    events = [event for event in answer.body.decode().split("\n\n") if event]
    assert events[0] == 'data: {"choices": []}'
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "bad_gateway"
    assert len(events) == 2


def _failures(rig: Rig, service: str) -> float:
    """Calls to the service that count against it."""
    outcomes = ("5xx", "ConnectFailed", "ResponseLost", "ResponseTimeout", "DeadlineExceeded", "BreakerOpen")
    labels = [{"upstream": service, "outcome": outcome} for outcome in outcomes]
    return sum(metric(rig, "service_upstream_calls_total", each) for each in labels)
