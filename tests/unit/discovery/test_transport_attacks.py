"""Instances that mean harm, or are broken: every call ends in time, within bounds, and with an error of ours."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from discovery import DeadlineExceeded, ResponseLost, ResponseTimeout
from tests.support.eventually import eventually, time_scale
from tests.support.raw import ANSWER, Peer, RawServer, answering, client_of, raw_server

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server(answering(ANSWER)) as raw:
        yield raw


def first(attack: Callable[[Peer], object]) -> Callable[[Peer], None]:
    """The first connection attacks; those after it are answered well."""

    def behave(peer: Peer) -> None:
        if peer.number == 0:
            peer.request()
            attack(peer)
            peer.closed()
        else:
            answering(ANSWER)(peer)

    return behave


def endless(begin: bytes, drop: bytes) -> Callable[[Peer], None]:
    def attack(peer: Peer) -> None:
        peer.say(begin)
        peer.repeat(drop)

    return attack


# What an answer may be is the parser's to decide (test_http_answer); here is one of each kind, on a connection.
ATTACKS = {
    "endless headers": endless(OK, b"X: y\r\n" * 500),
    "endless trailers": endless(CHUNKED + b"1\r\na\r\n0\r\n", b"X: y\r\n" * 500),
    "length and chunks": lambda peer: peer.say(
        OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    ),
    "half a body": lambda peer: (
        peer.say(OK + b"Content-Length: 9\r\n\r\nok"),
        peer.sock.shutdown(socket.SHUT_RDWR),
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_an_error_within_bounds_and_its_connection_is_never_used_again(
    server: RawServer, name: str, stream: bool
) -> None:
    server.behave = first(ATTACKS[name])
    calls = client_of(server.instance())
    began = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ResponseLost) as lost:
            _ = calls.request("GET", "users", "/", deadline_s=5, stream=stream).data
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert not isinstance(lost.value, ResponseTimeout)
    assert time.monotonic() - began < 2 * time_scale()
    assert lost.value.instance_id == "users-0"
    assert calls.breakers()["users"].failures == 1
    assert calls.request("GET", "users", "/").data == b"ok"
    assert len(server.peers) == 2
    eventually(lambda: server.peers[0].sock.fileno() < 0, within_s=2)


@pytest.mark.parametrize(
    ("begin", "drop", "stream"),
    [
        (b"", b"H", False),
        (OK, b"X", True),
        (CHUNKED + b"1;", b"x", False),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"X", True),
    ],
)
def test_drops_that_never_make_a_piece_do_not_stretch_the_time(
    server: RawServer, begin: bytes, drop: bytes, stream: bool
) -> None:
    """A timeout for each byte would never end."""

    def drip(peer: Peer) -> None:
        peer.say(begin or b"HTTP/1.1 200 ")
        for _ in range(200):
            time.sleep(0.02)
            peer.say(drop)

    server.behave = first(drip)
    calls = client_of(server.instance(), attempt_timeout_s=0.3, stream_idle_s=0.3)
    began = time.monotonic()
    with pytest.raises(ResponseTimeout):
        _ = calls.request("GET", "users", "/", deadline_s=5, stream=stream).data
    assert 0.25 < time.monotonic() - began < 1.5 * time_scale()


def test_answer_that_drips_ends_at_the_deadline(server: RawServer) -> None:
    def drip(peer: Peer) -> None:
        peer.say(OK + b"Content-Length: 1000\r\n\r\n")
        for _ in range(200):
            time.sleep(0.02)
            peer.say(b"x")

    server.behave = first(drip)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client_of(server.instance()).request("GET", "users", "/", deadline_s=0.6)
    assert time.monotonic() - began < 1.5 * time_scale()


# -- while the body is still being sent

LONG = b"x" * 30_000_000


def chunks(taken: list[int]) -> Iterator[bytes]:
    """A body of 30 MB that tells how much of it was asked for."""
    for _ in range(480):
        taken[0] += 1
        yield b"x" * 65536


def refusing(peer: Peer) -> None:
    """Says no to the head, and reads nothing of the body."""
    if peer.number == 0:
        peer.head()
        peer.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        time.sleep(1)
    else:
        answering(ANSWER)(peer)


@pytest.mark.parametrize("by_iterator", [False, True])
def test_refusal_before_the_body_was_sent_is_the_answer(server: RawServer, by_iterator: bool) -> None:
    server.behave = refusing
    calls = client_of(server.instance())
    taken = [0]
    began = time.monotonic()
    answer = calls.request("POST", "users", "/", body=chunks(taken) if by_iterator else LONG, deadline_s=5)
    assert (answer.status, answer.data) == (413, b"no")
    assert time.monotonic() - began < 0.9 * time_scale(), "without waiting for room"
    assert taken[0] < 400, "nor reading the caller's body to its end"
    assert calls.request("GET", "users", "/").data == b"ok"
    assert len(server.peers) == 2, "the rest of the body would be taken for a request"


@pytest.mark.parametrize("status", [413, 200])
def test_answer_before_the_connection_closes_on_the_body_is_the_answer(
    server: RawServer, status: int
) -> None:
    def behave(peer: Peer) -> None:
        peer.head()
        peer.say(b"HTTP/1.1 %d Now\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok" % status)
        # Closed with the body unread: what is still under way is answered by a reset.

    server.behave = behave
    for body in (LONG, chunks([0])):
        answer = client_of(server.instance()).request("POST", "users", "/", body=body, deadline_s=5)
        assert (answer.status, answer.data) == (status, b"ok")


def test_refusal_ends_a_body_that_comes_slowly(server: RawServer) -> None:
    taken = [0]

    def slow() -> Iterator[bytes]:
        for _ in range(100):
            taken[0] += 1
            yield b"x"
            time.sleep(0.05)

    server.behave = refusing
    answer = client_of(server.instance()).request("POST", "users", "/", body=slow(), deadline_s=10)
    assert (answer.status, answer.data) == (413, b"no")
    assert taken[0] < 15, "before the instance closes"


def test_good_answer_that_begins_early_does_not_stop_the_body(server: RawServer) -> None:
    """An instance that copies a body into its answer needs all of it."""
    received = []

    def copy(peer: Peer) -> None:
        head = peer.head()
        peer.say(OK + b"Content-Length: 2\r\n\r\n")
        time.sleep(0.1)
        received.append(head + b"\r\n\r\n" + peer.request().partition(b"\r\n\r\n")[2])
        peer.say(b"ok")

    server.behave = copy
    answer = client_of(server.instance()).request("POST", "users", "/", body=chunks([0]), deadline_s=10)
    assert answer.data == b"ok"
    assert received[0].count(b"x") == 480 * 65536


@pytest.mark.parametrize(("by_iterator", "answer"), [(False, ANSWER), (False, b""), (True, b"")])
def test_instance_that_does_not_read_costs_a_timeout(
    server: RawServer, by_iterator: bool, answer: bytes
) -> None:
    release = threading.Event()

    def behave(peer: Peer) -> None:
        peer.say(answer)
        release.wait(10)

    server.behave = behave
    calls = client_of(server.instance(), attempt_timeout_s=0.5)
    began = time.monotonic()
    with pytest.raises(ResponseTimeout):
        calls.request("POST", "users", "/", body=chunks([0]) if by_iterator else LONG)
    assert 0.4 < time.monotonic() - began < 1.5 * time_scale()
    release.set()


@pytest.mark.parametrize("noise", [b"", b"\xff" * 1000], ids=["hangs up", "noise"])
def test_instance_that_does_not_answer_while_the_body_is_sent_has_lost_the_answer(
    server: RawServer, noise: bytes
) -> None:
    server.behave = lambda peer: (peer.head(), peer.repeat(noise) if noise else None)
    calls = client_of(server.instance())
    for body in (LONG, chunks([0])):
        with pytest.raises(ResponseLost):
            calls.request("POST", "users", "/", body=body, deadline_s=5)


@pytest.mark.parametrize("pieces", [[(0.15, b"x")] * 5, [(0.5, LONG)]], ids=["slow", "late and long"])
def test_callers_slow_body_is_not_held_against_the_instance(
    server: RawServer, pieces: list[tuple[float, bytes]]
) -> None:
    """Each piece has its own time."""

    def slow() -> Iterator[bytes]:
        for pause_s, piece in pieces:
            time.sleep(pause_s)
            yield piece

    calls = client_of(server.instance(), attempt_timeout_s=0.4)
    answer = calls.request("POST", "users", "/", body=slow(), stream=True, deadline_s=10)
    assert answer.data == b"ok"
