"""Bodies and streams through a real gateway: in little memory, and cancelled when no client waits for them.

What becomes of them when an instance fails is in tests/resilience/test_calls.py.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.eventually import eventually, time_scale
from tests.support.gateway_rig import Rig, Service, metric
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


# -- bodies that go on while they are answered


def say_back(handler: Handler) -> None:
    """Begin an answer at once, and say each piece back as it comes."""
    handler.begin_chunks()
    handler.chunk(b"hello")
    with contextlib.suppress(OSError):
        while piece := handler.piece():
            handler.chunk(piece)
        handler.wfile.write(b"0\r\n\r\n")


@contextlib.contextmanager
def live(
    rig: Rig, pears: Service, framing: str = "Transfer-Encoding: chunked", **headers: str
) -> Iterator[socket.socket]:
    """A connection with the head of a request whose body goes on as it comes."""
    sent = rig.headers(pears, **headers) | {"X-Live": "1"}
    head = f"POST {pears.path}/x HTTP/1.1\r\nHost: x\r\n{framing}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in sent.items())
    with socket.create_connection(("127.0.0.1", rig.gateways[BUSINESS].port), 10 * time_scale()) as client:
        client.sendall(head.encode() + b"\r\n")
        yield client


def until(client: socket.socket, mark: bytes) -> bytes:
    """What comes up to the mark; less where the connection ends before."""
    data = b""
    with contextlib.suppress(OSError):
        while mark not in data and (part := client.recv(65536)):
            data += part
    return data


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize("framing", ["Transfer-Encoding: chunked", "Content-Length: 21"])
def test_both_sides_of_a_stream_talk_at_once(rig: Rig, framing: str) -> None:
    chunked = framing.startswith("Transfer")

    def by_length(handler: Handler) -> None:
        handler.begin_chunks()
        handler.chunk(b"hello")
        for _ in range(3):
            handler.chunk(handler.rfile.read(7))
        handler.wfile.write(b"0\r\n\r\n")

    with (
        rig.service(say_back if chunked else by_length, stream="true") as pears,
        live(rig, pears, framing) as client,
    ):
        assert until(client, b"hello").startswith(b"HTTP/1.1 200 ")
        for number in range(3):
            piece = b"piece %d" % number
            client.sendall(chunk(piece) if chunked else piece)
            answer = until(client, piece)
            assert piece in answer
        if chunked:
            client.sendall(b"0\r\n\r\n")
        # The end may have come with the last piece.
        assert (answer + (b"" if b"\r\n0\r\n\r\n" in answer else until(client, b"0\r\n\r\n"))).endswith(
            b"0\r\n\r\n"
        )
        # The connection is as good as new.
        client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert until(client, b"\r\n").startswith(b"HTTP/1.1 200 ")


def test_slow_body_of_a_stream_takes_longer_than_the_routes_timeout(rig: Rig) -> None:
    def count(handler: Handler) -> None:
        handler.answer(body=str(sum(map(len, iter(handler.piece, b"")))).encode())

    with rig.service(count, stream="true", timeout="1") as pears, live(rig, pears) as client:
        for _ in range(6):
            client.sendall(chunk(b"line\n"))
            time.sleep(0.4)
        client.sendall(b"0\r\n\r\n")
        assert until(client, b"\r\n\r\n30").endswith(b"\r\n\r\n30")


@pytest.mark.parametrize("ending", ["leaves", "bad framing", "too long"])
def test_client_that_breaks_its_stream_is_not_the_upstreams_failure(rig: Rig, ending: str) -> None:
    ended = threading.Semaphore(0)

    def behave(handler: Handler) -> None:
        say_back(handler)
        ended.release()

    with rig.service(behave, stream="true") as pears:
        for _ in range(1 if ending == "too long" else 3):
            with live(rig, pears) as client:
                assert b"hello" in until(client, b"hello")
                if ending == "bad framing":
                    client.sendall(b"zz\r\n")
                    assert not until(client, b"0\r\n\r\n").endswith(b"0\r\n\r\n")
                elif ending == "too long":
                    threading.Thread(target=until, args=(client, b"0\r\n\r\n"), daemon=True).start()
                    with contextlib.suppress(OSError):
                        for _mib in range(34):
                            client.sendall(chunk(b"x" * MIB))
            assert ended.acquire(timeout=10 * time_scale()), "the upstream did not see the end"
        assert _failures(rig, pears.name) == 0
        assert metric(rig, "service_upstream_breaker", {"upstream": pears.name}) == 0
        log = rig.gateways[BUSINESS].process.log.read_text()
        assert not [word for word in ("Error handling request", "Traceback") if word in log]


def test_answer_that_ends_before_the_body_is_whole(rig: Rig) -> None:
    with rig.service(lambda handler: handler.answer(body=b"enough"), stream="true") as pears:
        for _ in range(3):
            with live(rig, pears) as client:
                client.sendall(chunk(b"one"))
                assert until(client, b"\r\n\r\nenough").endswith(b"enough")


def test_instance_that_dies_in_a_stream_cuts_it(rig: Rig) -> None:
    def behave(handler: Handler) -> None:
        handler.begin_chunks()
        handler.chunk(handler.piece())
        handler.hang_up()

    with rig.service(behave, stream="true") as pears, live(rig, pears) as client:
        client.sendall(chunk(b"one"))
        assert not until(client, b"0\r\n\r\n").endswith(b"0\r\n\r\n")


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
