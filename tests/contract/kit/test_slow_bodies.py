"""Clients that send a body drop by drop: what they may hold, and for how long."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.contract.kit.running import running
from tests.support.eventually import eventually, time_scale
from tests.support.instances import RunningInstance
from tests.support.matrix import one_always

THREADS = 4
BODY_TIMEOUT_S = 2.0 * time_scale()
# More than the edge holds back until it is complete (tune.bufsize), so that an instance sees it half sent.
LENGTH = 60_000


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningInstance]:
    settings = {"WORKER_THREADS": str(THREADS), "BODY_TIMEOUT_S": str(BODY_TIMEOUT_S)}
    with running(tmp_path_factory.mktemp("slow"), **settings) as one:
        yield one


@contextlib.contextmanager
def slow_bodies(instance: RunningInstance, count: int, head: bytes) -> Iterator[list[socket.socket]]:
    """Connections that have sent a head and a part of a body, and then wait."""
    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", instance.port), timeout=15))
            one.sendall(b"POST /api/hello/raw HTTP/1.1\r\nHost: x\r\n" + head)
            connections.append(one)
        yield connections


def status(connection: socket.socket) -> int:
    data = connection.recv(65536)
    return int(data.split(b" ", 2)[1])


FRAMINGS = {
    "length": b"Content-Length: %d\r\n\r\n" % LENGTH + b"x" * 20_000,
    "chunked": b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % LENGTH + b"x" * 20_000,
    "long head": b"X-Long: " + b"x" * 12_000 + b"\r\nContent-Length: 4000\r\n\r\n" + b"x" * 100,
}


@pytest.mark.parametrize("head", FRAMINGS.values(), ids=FRAMINGS.keys())
def test_slow_bodies_leave_threads_for_everybody_else(instance: RunningInstance, head: bytes) -> None:
    with slow_bodies(instance, 3 * THREADS, head) as connections:
        time.sleep(0.3)
        began = time.monotonic()
        assert instance.ready()
        small = requests.post(instance.url + "/api/hello/things", json={"name": "x"}, timeout=15)
        assert small.status_code == 201
        assert time.monotonic() - began < BODY_TIMEOUT_S / 2
        answers = sorted(status(connection) for connection in connections)
    assert answers == [408] * (THREADS * 3 // 4) + [503] * (3 * THREADS - THREADS * 3 // 4)


@pytest.mark.parametrize("kind", one_always("gthread", "gevent"))
def test_slow_heads_hold_no_thread_for_long(tmp_path: Path, kind: str) -> None:
    settings = {"WORKER_THREADS": "1", "BODY_TIMEOUT_S": "1", "WORKER_CLASS": kind}
    with running(tmp_path, **settings) as one:
        with socket.create_connection(("127.0.0.1", one.port), timeout=15) as connection:
            connection.sendall(b"GET /health/ready HTTP/1.1\r\nHo")
            time.sleep(0.2)
            assert one.ready()
            began = time.monotonic()
            # Each byte renews a timeout of the socket.
            while time.monotonic() - began < 15:
                try:
                    connection.sendall(b"s")
                except OSError:
                    break
                time.sleep(0.1)
            assert time.monotonic() - began < 3 * time_scale()
        assert "Socket error processing request." not in one.events()


def test_dripping_does_not_lengthen_the_time_for_a_body(instance: RunningInstance) -> None:
    with slow_bodies(instance, 1, FRAMINGS["length"]) as (connection,):
        began = time.monotonic()
        connection.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - began < 5 * BODY_TIMEOUT_S:
            with contextlib.suppress(OSError):
                connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"application/problem+json" in answer
        assert time.monotonic() - began < 2 * BODY_TIMEOUT_S + 1


def test_whole_bodies_pass_and_give_their_places_back(instance: RunningInstance) -> None:
    for _ in range(3 * THREADS):
        for data in (b"x" * 500_000, iter([b"x" * 10_000] * 50)):
            answer = requests.post(instance.url + "/api/hello/raw", data=data, timeout=15)
            assert answer.json() == {"bytes": 500_000}


def test_client_that_goes_in_mid_body_gives_its_place_back(instance: RunningInstance) -> None:
    with slow_bodies(instance, 3 * THREADS, FRAMINGS["length"]):
        time.sleep(0.2)
    eventually(lambda: requests.post(instance.url + "/api/hello/raw", data=b"x" * 50_000, timeout=15).ok, 5)
