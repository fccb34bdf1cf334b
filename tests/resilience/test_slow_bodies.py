"""Bodies that never end, or end in what is no body: many small requests of one client, and a polite one beside them."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from tests.support.eventually import eventually, time_scale
from tests.support.gateway_rig import Rig, Service, exchange, gateway_rig, metric
from tests.support.matrix import one_always
from tests.support.processor import alone_s, busy_s, used_s
from tests.support.scripted import ok

ATTACKERS = 2300
# Of one client, as the gateway has it by default.
WAITED_FOR = 32
SLOW = b"5\r\nab"
TRAILERS = {
    "length": b"1\r\na\r\n0\r\nContent-Length: 0\r\n\r\n",
    "coding": b"1\r\na\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "nul": b"1\r\na\r\n0\r\nX-A: \x00\r\n\r\n",
}


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with gateway_rig(env={"BODY_TIMEOUT_S": "60"}) as started:
            yield started
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def attack(rig: Rig, service: Service, body: bytes) -> Iterator[list[socket.socket]]:
    """All of them at once, each with the beginning of a request, and held."""
    head = f"POST {service.path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in rig.headers(service, "10.66.66.66").items())
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(ATTACKERS):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", rig.gateways[0].port))
            sockets.append(one)
        left = set(sockets)
        with selectors.DefaultSelector() as selector:
            for one in sockets:
                selector.register(one, selectors.EVENT_WRITE)
            while left:
                for key, _ in selector.select(10):
                    selector.unregister(key.fileobj)
                    left.discard(key.fileobj)  # type: ignore[arg-type]
                    with contextlib.suppress(OSError):
                        key.fileobj.send(head.encode() + b"\r\n" + body)  # type: ignore[union-attr]
        yield sockets


def statuses(sockets: list[socket.socket]) -> Counter[str]:
    """What each has been answered so far; empty for nothing."""
    said: Counter[str] = Counter()
    for one in sockets:
        try:
            said[one.recv(4096, socket.MSG_PEEK)[9:12].decode()] += 1
        except OSError:
            said[""] += 1
    return said


def be_polite(rig: Rig, service: Service, seconds: float) -> list[float]:
    """Health, reads and writes of another caller, all well; how long each took, without what others took of the machine."""
    gateway = rig.gateways[0].process.pid
    ours = [os.getpid(), gateway, *(child.pid for child in psutil.Process(gateway).children())]
    took_s = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began, busy, own = time.monotonic(), busy_s(), used_s(ours)
        assert exchange(rig.gateways[0].port, "GET", "/health/ready", {}).status == 200
        assert rig.ask("GET", service.path, service=service, client="10.1.1.1").status == 200
        assert (
            rig.ask("POST", service.path, service=service, client="10.1.1.1", body=b"x" * 999).status == 200
        )
        assert (
            rig.ask("POST", service.path, service=service, client="10.1.1.1", body=iter([b"x"])).status == 200
        )
        took_s.append(alone_s(time.monotonic() - began, busy_s() - busy, used_s(ours) - own))
    return took_s


def test_thousands_of_bodies_that_do_not_come_leave_others_untouched(rig: Rig) -> None:
    with rig.service(ok) as pears, attack(rig, pears, SLOW) as sockets:
        assert max(be_polite(rig, pears, 1.5)) < 4 * time_scale()
        eventually(lambda: statuses(sockets)["503"] == ATTACKERS - WAITED_FOR, 10)
        assert statuses(sockets)[""] == WAITED_FOR
        assert max(be_polite(rig, pears, 0.5)) < 1 * time_scale()
        assert not [seen for seen in pears.requests if seen.headers["x-forwarded-for"] == "10.66.66.66"]
        assert metric(rig, "service_upstream_breaker", {"upstream": pears.name}) == 0


@pytest.mark.parametrize("trailer", one_always(*TRAILERS))
def test_thousands_of_bodies_that_end_badly_leave_others_untouched(rig: Rig, trailer: str) -> None:
    with rig.service(ok) as pears, attack(rig, pears, TRAILERS[trailer]) as sockets:
        assert max(be_polite(rig, pears, 1.0)) < 4 * time_scale()
        eventually(lambda: statuses(sockets)[""] == 0, 10)
        assert set(statuses(sockets)) <= {"400", "503"}
