"""Behind another balancer: the client's address comes from the proxies that are trusted, and from nothing else."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator

import pytest

from discovery.errors import ContractError
from haproxy.controller.config.model import EdgeState
from tests.support.edge import Edge, backend, edge
from tests.support.recorder import Upstream

PROXY, STRANGER, CLIENT = "127.0.0.9", "127.0.0.1", "203.0.113.7"
LINE = f"PROXY TCP4 {CLIENT} 127.0.0.1 1234 80\r\n"
LIMIT = 5


@contextlib.contextmanager
def behind(*, protocol: bool) -> Iterator[tuple[Edge, Upstream]]:
    with (
        Upstream("users") as upstream,
        edge(
            EdgeState((backend("users", upstream.port),)),
            edge_trusted_proxies=f"{PROXY}, 2001:db8::/32",
            edge_proxy_protocol=protocol,
            edge_rate_source=LIMIT,
        ) as running,
    ):
        yield running, upstream


@pytest.fixture(scope="module")
def by_header() -> Iterator[tuple[Edge, Upstream]]:
    with behind(protocol=False) as made:
        yield made


@pytest.fixture(scope="module")
def by_protocol() -> Iterator[tuple[Edge, Upstream]]:
    with behind(protocol=True) as made:
        yield made


def statuses(running: Edge, source: str, *clients: str, first: str = "") -> list[int]:
    """What the requests get that one connection from `source` brings for these clients (`X-Forwarded-For`); `first`: its first bytes."""
    with socket.create_connection(
        ("127.0.0.1", running.port), timeout=5, source_address=(source, 0)
    ) as connection:
        for number, client in enumerate(clients):
            last = number == len(clients) - 1
            lines = [
                "GET /api/users/1 HTTP/1.1",
                "Host: a",
                f"Connection: {'close' if last else 'keep-alive'}",
            ]
            lines += [f"X-Forwarded-For: {client}"] if client else []
            connection.sendall((first + "\r\n".join([*lines, "", ""])).encode())
            first = ""
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    return [int(status) for status in re.findall(rb"HTTP/1\.\d (\d{3}) ", answer)]


def seen(upstream: Upstream) -> str | None:
    return upstream.requests[-1].header("x-forwarded-for")


@pytest.mark.parametrize(
    ("source", "header", "client"),
    [
        (PROXY, CLIENT, CLIENT),
        (PROXY, f"1.2.3.4, {CLIENT}", CLIENT),
        (PROXY, "2001:db8::7", "2001:db8::7"),
        (PROXY, "nonsense", PROXY),
        (PROXY, "", PROXY),
        (STRANGER, CLIENT, STRANGER),
    ],
)
def test_last_address_in_the_header_of_a_trusted_proxy_is_the_client(
    by_header: tuple[Edge, Upstream], source: str, header: str, client: str
) -> None:
    running, upstream = by_header
    assert statuses(running, source, header) == [200]
    assert seen(upstream) == client


def test_clients_of_one_connection_of_a_proxy_are_counted_each_by_itself(
    by_header: tuple[Edge, Upstream],
) -> None:
    running, _ = by_header
    assert set(statuses(running, PROXY, *(f"198.51.100.{n}" for n in range(2 * LIMIT)))) == {200}
    assert 429 in statuses(running, PROXY, *["198.51.100.99"] * 2 * LIMIT)


def test_stranger_that_names_another_client_each_time_is_one_source(
    by_header: tuple[Edge, Upstream],
) -> None:
    running, _ = by_header
    assert 429 in statuses(running, "127.0.0.2", *(f"198.51.100.{n}" for n in range(2 * LIMIT)))


def test_proxy_protocol_of_a_trusted_proxy_names_the_client_and_its_header_does_not(
    by_protocol: tuple[Edge, Upstream],
) -> None:
    running, upstream = by_protocol
    assert statuses(running, PROXY, "1.2.3.4", first=LINE) == [200]
    assert seen(upstream) == CLIENT
    other = LINE.replace(CLIENT, "203.0.113.8")
    assert 429 in statuses(running, PROXY, *[""] * 2 * LIMIT, first=other)
    assert statuses(running, PROXY, "", first=LINE) == [200], "counted by itself"


def test_proxy_protocol_is_demanded_of_a_trusted_proxy_and_refused_from_any_other(
    by_protocol: tuple[Edge, Upstream],
) -> None:
    running, upstream = by_protocol
    assert 200 not in statuses(running, PROXY, "")
    assert 200 not in statuses(running, STRANGER, "", first=LINE)
    assert statuses(running, STRANGER, CLIENT) == [200]
    assert seen(upstream) == STRANGER


def test_what_is_no_network_is_refused() -> None:
    with (
        pytest.raises(ContractError, match="networks"),
        edge(EdgeState(), edge_trusted_proxies="10.0.0.0/8 if TRUE"),
    ):
        pass
