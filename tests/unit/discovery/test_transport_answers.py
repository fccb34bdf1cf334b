"""What the transport makes of what instances answer, and how much of it it takes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from discovery import AnswerTooLarge, ResponseLost
from tests.support.eventually import eventually, time_scale
from tests.support.raw import ANSWER, Peer, RawServer, answering, client_of, raw_server, recording


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server(answering(ANSWER)) as raw:
        raw.behave = recording(raw, lambda peer: peer.say(ANSWER))
        yield raw


@pytest.mark.parametrize(
    ("method", "answer", "status", "body", "kept"),
    [
        ("GET", ANSWER, 200, b"ok", True),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 200, b"", True),
        ("GET", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
        ("GET", ANSWER + b"more", 200, b"ok", False),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"", False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_answers_end_where_they_say(
    server: RawServer, method: str, answer: bytes, status: int, body: bytes, kept: bool, stream: bool
) -> None:
    server.behave = answering(answer)
    calls = client_of(server.instance())
    for _ in range(2):
        response = calls.request(method, "users", "/", stream=stream)
        assert (response.status, response.data) == (status, body)
    assert len(server.peers) == (1 if kept else 2)


@pytest.mark.parametrize("stream", [False, True])
def test_body_without_a_length_ends_with_the_connection(server: RawServer, stream: bool) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\n\r\nto the")
        time.sleep(0.05)
        peer.say(b" end")

    server.behave = behave
    assert client_of(server.instance()).request("GET", "users", "/", stream=stream).data == b"to the end"


def test_repeated_headers_stay_apart_and_in_order(server: RawServer) -> None:
    server.behave = answering(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nVary: Accept\r\nset-cookie:  b=2 \r\nvary: Cookie\r\nContent-Length: 0\r\n\r\n"
    )
    headers = client_of(server.instance()).request("GET", "users", "/").headers
    assert headers.items()[:3] == [("Set-Cookie", "a=1"), ("Vary", "Accept"), ("set-cookie", "b=2")]
    assert headers["VARY"] == headers.get("vary") == "Accept, Cookie"
    assert "Set-cookie" in headers
    assert "etag" not in headers
    assert headers.get("etag", "none") == "none"
    assert dict(headers) == {"set-cookie": "a=1, b=2", "vary": "Accept, Cookie", "content-length": "0"}


@pytest.mark.parametrize("stream", [False, True])
def test_body_comes_as_it_was_sent_whatever_its_encoding(server: RawServer, stream: bool) -> None:
    server.behave = answering(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok")
    response = client_of(server.instance()).request("GET", "users", "/", stream=stream)
    assert (response.data, response.headers["content-encoding"]) == (b"ok", "gzip")


def test_pieces_come_as_they_arrive_and_at_most_64_kib_long(server: RawServer) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        time.sleep(0.1)
        peer.say(b"100000\r\n" + b"b" * 0x100000 + b"\r\n0\r\n\r\n")

    server.behave = behave
    response = client_of(server.instance()).request("GET", "users", "/", stream=True)
    pieces = list(response.iter_bytes())
    assert pieces[0] == b"a"
    assert max(map(len, pieces)) <= 65536
    assert b"".join(pieces) == b"a" + b"b" * 0x100000
    assert list(response.iter_bytes()) == []


def test_answer_that_was_left_does_not_look_like_one_that_ended(server: RawServer) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        peer.closed()

    server.behave = behave
    response = client_of(server.instance()).request("GET", "users", "/", stream=True)
    response.close()
    with pytest.raises(ResponseLost):
        _ = response.data


def test_pieces_of_an_answer_that_has_ended_survive_the_connections_next_use(server: RawServer) -> None:
    server.behave = answering(ANSWER, b"HTTP/1.1 404 No\r\nContent-Length: 3\r\n\r\nbad")
    calls = client_of(server.instance())
    first = calls.request("GET", "users", "/", stream=True)
    reader = first.iter_bytes()
    first.close()
    assert calls.request("GET", "users", "/").data == b"bad"
    assert b"".join(reader) == b"ok"
    assert len(server.peers) == 1


def test_announced_length_over_the_limit_is_not_waited_for(server: RawServer) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        peer.closed()

    server.behave = behave
    calls = client_of(server.instance(), attempt_timeout_s=3)
    began = time.monotonic()
    with pytest.raises(AnswerTooLarge):
        calls.request("GET", "users", "/")
    assert time.monotonic() - began < 1 * time_scale()
    assert calls.breakers()["users"].failures == 0, "a long answer is no failure"


@pytest.mark.parametrize("stream", [False, True])
def test_endless_answer_is_read_up_to_the_limit(server: RawServer, stream: bool) -> None:
    sent: list[int] = []

    def behave(peer: Peer) -> None:
        peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent.append(peer.repeat(b"8000\r\n" + b"x" * 0x8000 + b"\r\n", 300_000))

    server.behave = behave
    calls = client_of(server.instance(), max_body_bytes=1_000_000)
    with pytest.raises(AnswerTooLarge):
        _ = calls.request("GET", "users", "/", stream=stream).data
    eventually(lambda: sent, within_s=5)
    assert sent[0] < 20_000_000
