"""Clients that leave before their answer: a gateway's connection is closed, so that it can stop; other instances are let work."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from haproxy.controller.config.model import EdgeState
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import eventually
from tests.support.scripted import Handler, Upstream, upstream

WORK_S = 1.5


def works(handler: Handler) -> None:
    """Takes its time over everything but a check, and notes whether its connection was closed meanwhile."""
    if handler.path == "/health/ready":
        handler.answer()
        return
    handler.connection.settimeout(WORK_S)
    left = True
    try:
        handler.connection.recv(1)
    except TimeoutError:
        left = False
    except ConnectionError:
        pass
    handler.seen.headers["left"] = str(left)
    handler.connection.settimeout(5)
    if left:
        handler.hang_up()
    else:
        handler.answer()


@dataclass
class House:
    edge: Edge
    gateway: Upstream
    plain: Upstream

    def ask(self, path: str) -> socket.socket:
        """A connection on which this was asked, once an instance has it."""
        client = socket.create_connection(("127.0.0.1", self.edge.port), timeout=10)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        eventually(lambda: self._seen(path), 5)
        return client

    def left(self, path: str) -> str:
        """Whether the instance saw its connection closed."""
        return eventually(lambda: self._seen(path)["left"], 2 * WORK_S)

    def _seen(self, path: str) -> dict[str, str]:
        requests = [*self.gateway.requests, *self.plain.requests]
        return next(seen.headers for seen in requests if seen.path == path)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with upstream(works) as gateway, upstream(works) as plain:
        state = EdgeState(
            (
                backend("gateway-business", gateway.port, paths=("/api/gw",), check_identity=False),
                backend("plain", plain.port, check_identity=False),
            )
        )
        with edge(state) as running:
            eventually(lambda: gateway.requests and plain.requests, 10)
            yield House(running, gateway, plain)


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_gateways_connection_ends_with_the_clients(house: House, how: str) -> None:
    client = house.ask(f"/api/gw/{how}")
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert house.left(f"/api/gw/{how}") == "True"


def test_a_plain_instance_is_let_work_to_the_end(house: House) -> None:
    house.ask("/api/plain/closed").close()
    assert house.left("/api/plain/closed") == "False"


def test_a_client_that_has_said_all_gets_the_answer_of_a_plain_instance(house: House) -> None:
    with house.ask("/api/plain/half") as client:
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
