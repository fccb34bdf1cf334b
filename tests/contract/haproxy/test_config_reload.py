"""What a reload costs the clients, and what a client cannot do to it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from haproxy.controller.config.model import EdgeState
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import eventually
from tests.support.load import Load, Plan
from tests.support.matrix import one_always
from tests.support.recorder import Answer, Upstream


def connected(running: Edge) -> socket.socket:
    """To the master, which does not answer for the moment in which it starts (or restarts itself, for a reload)."""
    found: list[socket.socket] = []

    def listening() -> bool:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(1)
        try:
            connection.connect(str(running.server.master_socket))
        except OSError:
            connection.close()
            return False
        found.append(connection)
        return True

    eventually(listening, 5)
    return found[0]


def master(running: Edge, command: str) -> str:
    with connected(running) as connection:
        connection.sendall(command.encode() + b"\n")
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except OSError:
            pass  # the master that reloads says no more on this connection
        return answer.decode()


def old_workers(running: Edge) -> int:
    _, _, old = master(running, "show proc").partition("# old workers")
    return sum("worker" in line for line in old.split("# programs")[0].splitlines())


IDLE_CLOSE = "option idle-close-on-response"


# The counter-proof needs a machine that is quick enough to lose something.
@pytest.mark.parametrize("instead", one_always(IDLE_CLOSE, "# none"))
def test_reloads_under_load_cost_no_request_thanks_to_their_line(instead: str) -> None:
    with Upstream("users") as upstream:
        state = EdgeState((backend("users", upstream.port),))
        with edge(state, alter=(IDLE_CLOSE, instead)) as running:
            plan = Plan(port=running.port, paths=("/api/users/1",), connections=32, rate_per_s=1000)
            with Load(plan) as load:
                for _ in range(5):
                    time.sleep(0.4)
                    master(running, "reload")
                time.sleep(0.4)
        failures = [*load.report().failures(), *load.report().cuts()]
        assert bool(failures) is (instead != IDLE_CLOSE), load.report().summary()


@contextmanager
def slow_reader(running: Edge) -> Iterator[None]:
    """A client that keeps an answer open by not reading it."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", running.port))
        client.sendall(b"GET /api/users/1 HTTP/1.1\r\nHost: a\r\n\r\n")
        client.recv(10)
        yield


@pytest.mark.parametrize(("limit", "kept"), one_always(("hard-stop-after 3s", False), ("# none", True)))
def test_client_cannot_keep_an_old_worker_for_ever(limit: str, kept: bool) -> None:
    with Upstream("users", handler=lambda _: Answer(body=b"x" * 20_000_000)) as upstream:
        state = EdgeState((backend("users", upstream.port),))
        with edge(state, alter=("hard-stop-after 600s", limit)) as running, slow_reader(running):
            master(running, "reload")
            eventually(lambda: old_workers(running) == 1, 2)
            if kept:
                time.sleep(4)
                assert old_workers(running) == 1
            else:
                eventually(lambda: old_workers(running) == 0, 6)
