"""What a reload costs the clients, and what a client cannot do to it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from haproxy.controller.config.model import EdgeState
from haproxy.controller.errors import Unreachable
from haproxy.controller.runtime.socket import Master, Runtime, command
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import eventually
from tests.support.load import Load, Plan
from tests.support.matrix import one_always
from tests.support.recorder import Answer, Upstream


def reload(running: Edge) -> None:
    """Ask the master, which does not answer for the moment in which it starts (or restarts itself, for a reload)."""

    def asked() -> bool:
        try:
            Master(running.server.master_socket).reload()
        except Unreachable:
            return False
        return True

    eventually(asked, 5)


def old_workers(running: Edge) -> int:
    """Of a master that listens again."""
    try:
        with Runtime(running.server.master_socket).session() as session:
            _, _, old = session.send(command("show", "proc")).partition("# old workers")
    except Unreachable:
        return -1
    return sum("worker" in line for line in old.split("# programs")[0].splitlines())


@pytest.mark.long  # a machine that is quick enough to lose something; that nothing is lost with the line shows elsewhere
def test_reloads_under_load_cost_requests_without_their_line() -> None:
    with Upstream("users") as upstream:
        state = EdgeState((backend("users", upstream.port),))
        with edge(state, alter=("option idle-close-on-response", "# none")) as running:
            plan = Plan(port=running.port, paths=("/api/users/1",), connections=32, rate_per_s=1000)
            with Load(plan) as load:
                for _ in range(5):
                    time.sleep(0.4)
                    reload(running)
                time.sleep(0.4)
        assert [*load.report().failures(), *load.report().cuts()], load.report().summary()


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
            reload(running)
            eventually(lambda: old_workers(running) == 1, 2)
            if kept:
                time.sleep(4)
                assert old_workers(running) == 1
            else:
                eventually(lambda: old_workers(running) == 0, 6)
