"""Answers and bodies that come bit by bit, connections that are handed over, and clients that leave: nothing is held back, or cut
too early."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from haproxy.controller.config.model import EdgeState
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import eventually, time_scale
from tests.support.matrix import one_always
from tests.support.raw import Peer, raw_server

Talk = Callable[[socket.socket, bytes], None]

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
HANDSHAKE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


@dataclass
class Talker:
    """An instance on a port; `heads` of the requests that came, in lower case."""

    port: int
    heads: list[bytes]


@contextlib.contextmanager
def talker(talk: Talk) -> Iterator[Talker]:
    """Answers the edge's checks and hands every other connection, once a head has come, to `talk`."""
    heads: list[bytes] = []

    def behave(peer: Peer) -> None:
        head = peer.head()
        if b"edge-check" in head:
            peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif head:
            heads.append(head.lower())
            talk(peer.sock, bytes(peer.heard).partition(b"\r\n\r\n")[2])

    with raw_server(behave) as server:
        yield Talker(server.port, heads)


def until(connection: socket.socket, mark: bytes) -> bytes:
    """Everything up to the mark, and what came with it; less where the other side ends before."""
    data = b""
    while mark not in data:
        part = connection.recv(65536)
        if not part:
            break
        data += part
    return data


@contextlib.contextmanager
def talking(
    talk: Talk, alter: tuple[str, str] | None = None, gateway: bool = False, **route: object
) -> Iterator[tuple[Edge, Talker]]:
    with talker(talk) as instance:
        backends = [backend("talk", instance.port, check_identity=False, **route)]
        if gateway:
            backends.insert(0, backend("gateway-business", instance.port, check_identity=False))
        with edge(EdgeState(tuple(backends)), alter=alter) as running:
            yield running, instance


@contextlib.contextmanager
def asked(running: Edge, *lines: str, timeout_s: float = 5.0) -> Iterator[socket.socket]:
    """A connection on which this head has been sent; the first line is the request line's first two words."""
    with socket.create_connection(("127.0.0.1", running.port), timeout_s * time_scale()) as connection:
        first, *others = lines
        head = "\r\n".join([f"{first} HTTP/1.1", "Host: edge.test", *others, "", ""])
        connection.sendall(head.encode())
        yield connection


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(text), text)


# -- answers


def clock(connection: socket.socket, _: bytes) -> None:
    """Six events, each with the time at which it was sent."""
    connection.sendall(EVENTS)
    for _number in range(6):
        time.sleep(0.02)
        connection.sendall(chunk(b"data: %d;" % (time.monotonic() * 1000)))
    connection.sendall(b"0\r\n\r\n")


def late_ms(running: Edge) -> float:
    """How late the latest of the events came."""
    with asked(running, "GET /api/talk/x") as connection:
        late, data, seen = 0.0, b"", 0
        while seen < 6:
            data += connection.recv(65536)
            sent = re.findall(rb"data: (\d+);", data)
            late = max([late, *(time.monotonic() * 1000 - int(ms) for ms in sent[seen:])])
            seen = len(sent)
        return late


@pytest.mark.parametrize("lane", one_always("direct", "gateway"))
def test_event_is_not_held_back_until_the_one_before_is_acknowledged(lane: str) -> None:
    with talking(clock, gateway=lane == "gateway", lane=lane) as (running, _):
        assert min(late_ms(running) for _ in range(5)) < 30
    without = ("    option http-no-delay\n", "")
    with talking(clock, without, gateway=lane == "gateway", lane=lane) as (held, _):
        assert min(late_ms(held) for _ in range(5)) > 60


def pause(before_s: float, within_s: float) -> Talk:
    def talk(connection: socket.socket, _: bytes) -> None:
        time.sleep(before_s)
        connection.sendall(EVENTS + chunk(b"one"))
        time.sleep(within_s)
        connection.sendall(chunk(b"two") + b"0\r\n\r\n")

    return talk


STREAMS = [
    ["POST /api/talk/x", "Content-Length: 0"],
    ["POST /api/talk/x", "Content-Length: 0", "Accept: application/json"],
    ["GET /api/talk/x", "Accept: text/event-stream"],
]


@pytest.mark.parametrize("lines", one_always(*STREAMS))
def test_answer_that_has_begun_may_be_silent_for_the_routes_idle_time(lines: list[str]) -> None:
    with talking(pause(0, 1.8), timeout_s=1, idle_s=20) as (running, _), asked(running, *lines) as connection:
        assert b"two" in until(connection, b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("lines", one_always(*STREAMS))
def test_head_of_a_stream_is_not_waited_for_any_longer_than_others(lines: list[str]) -> None:
    with talking(pause(4, 0), timeout_s=1, idle_s=20) as (running, instance):
        begun = time.monotonic()
        with asked(running, *lines, "Connection: close") as connection:
            head, _, body = until(connection, b"nothing").partition(b"\r\n\r\n")
        assert time.monotonic() - begun < 1 + 1 * time_scale()
        problem = json.loads(body)
        assert head.startswith(b"HTTP/1.1 504 ")
        assert (problem["status"], problem["layer"], problem["service"]) == (504, "edge", "talk")
        assert problem["request_id"].encode() in head
        assert b"application/problem+json" in head
        assert len(instance.heads) == 1


def test_client_that_only_listens_is_not_taken_for_gone() -> None:
    alter = ("timeout client 60s", "timeout client 1s")
    with talking(pause(0, 1.8), alter, idle_s=20) as (running, _), asked(running, *STREAMS[2]) as connection:
        assert b"two" in until(connection, b"\r\n0\r\n\r\n")


# -- bodies


def say_back(connection: socket.socket, body: bytes) -> None:
    """Begin an answer at once, and then say each piece of the body back as it comes."""
    connection.sendall(EVENTS + chunk(b"hello"))
    while b"0\r\n\r\n" not in body:
        if body:
            connection.sendall(chunk(body))
        body = connection.recv(65536)
        if not body:
            return  # the client has gone
    connection.sendall(b"0\r\n\r\n")


SLOW = ("POST /api/talk/x", "Transfer-Encoding: chunked")
SHORT_WAIT = ("wait-for-body time 5s", "wait-for-body time 300ms")


def test_bodies_of_a_route_that_asks_for_it_go_on_as_they_come() -> None:
    with talking(say_back, SHORT_WAIT, stream=True) as (running, _), asked(running, *SLOW) as connection:
        assert b"hello" in until(connection, b"hello")
        for number in range(3):
            time.sleep(0.4)
            connection.sendall(chunk(b"piece %d" % number))
            assert b"piece %d" % number in until(connection, b"piece %d" % number)
        connection.sendall(b"0\r\n\r\n")
        assert until(connection, b"0\r\n\r\n")


def test_stream_of_a_gateways_route_goes_on_as_it_comes() -> None:
    with (
        talking(say_back, SHORT_WAIT, gateway=True, lane="gateway", stream=True) as (running, _),
        asked(running, *SLOW) as connection,
    ):
        assert b"hello" in until(connection, b"hello")


# -- WebSockets


def speak(connection: socket.socket, _: bytes) -> None:
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    while data := connection.recv(65536):
        connection.sendall(data)


def test_websocket_passes_where_the_route_asks_for_it() -> None:
    with talking(speak, upgrade="websocket", idle_s=1) as (running, instance):
        with asked(running, "GET /api/talk/x", *HANDSHAKE) as connection:
            assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
            for _ in range(3):
                time.sleep(0.5)
                connection.sendall(b"ping")
                assert connection.recv(100) == b"ping"
            silent = time.monotonic()
            assert connection.recv(100) == b""
            assert 0.8 < time.monotonic() - silent < 1 + 2 * time_scale()
        assert b"upgrade: websocket" in instance.heads[0]


def test_websocket_ends_on_both_sides_with_its_instance() -> None:
    gone = threading.Event()

    def talk(connection: socket.socket, rest: bytes) -> None:
        try:
            speak(connection, rest)
        finally:
            gone.set()

    with (
        talking(talk, upgrade="websocket", idle_s=600) as (running, _),
        asked(running, "GET /api/talk/x", *HANDSHAKE) as connection,
    ):
        until(connection, b"\r\n\r\n")
        running.command("shutdown sessions server svc_talk/talk-1")
        assert connection.recv(100) == b""
        eventually(gone.is_set, 2)


@pytest.mark.parametrize(
    ("route", "gateway", "status"),
    [
        ({"upgrade": "websocket", "auth": "jwt"}, False, b"401"),
        ({"upgrade": "websocket", "lane": "gateway"}, True, b"501"),
    ],
)
def test_websocket_without_a_token_or_in_the_gateway_lane_is_refused(
    route: dict[str, object], gateway: bool, status: bytes
) -> None:
    with talking(speak, gateway=gateway, **route) as (running, instance):
        with asked(running, "GET /api/talk/x", *HANDSHAKE) as connection:
            answer = until(connection, b"}")
        assert answer.split(b" ")[1] == status
        assert b"application/problem+json" in answer
        assert instance.heads == []


def test_websocket_elsewhere_is_an_ordinary_request() -> None:
    with talking(pause(0, 0)) as (running, instance):
        with asked(running, "GET /api/talk/x", *HANDSHAKE) as connection:
            assert until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        assert b"upgrade:" not in instance.heads[0]


# -- clients that leave before their answer: a gateway's connection is closed, so that it can stop; other instances are let work

WORK_S = 1.0


def works(left: list[bool]) -> Talk:
    """Takes its time before it answers, and notes whether its connection was closed meanwhile."""

    def talk(connection: socket.socket, _: bytes) -> None:
        connection.settimeout(WORK_S)
        try:
            connection.recv(1)
            left.append(True)
        except TimeoutError:
            left.append(False)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except ConnectionError:
            left.append(True)

    return talk


@pytest.mark.parametrize(
    ("path", "how", "ended"),
    [
        ("/api/gateway-business/x", "closed", True),
        ("/api/gateway-business/x", "reset", True),
        ("/api/talk/x", "closed", False),
        ("/api/talk/x", "half closed", False),
    ],
)
def test_instance_whose_client_has_gone_is_let_work_and_a_gateway_is_not(
    path: str, how: str, ended: bool
) -> None:
    left: list[bool] = []
    with talking(works(left), gateway=True) as (running, instance), asked(running, f"GET {path}") as client:
        eventually(lambda: instance.heads, 5)
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "half closed":
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1000).startswith(b"HTTP/1.1 200"), "it has said all that it wanted to say"
        else:
            client.close()
        assert eventually(lambda: left, 2 * WORK_S) == [ended]
