"""What the transport makes of what instances answer, and how much of it it takes."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest

from discovery import AnswerTooLarge, ResponseLost
from discovery.http.body import Decoder
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


def encoded(coding: str, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n%b" % (
        coding.encode(),
        len(body),
        body,
    )


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


TEXT = b"what a gateway passes on " * 10_000


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("x-GZIP", gzip.compress(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
    ],
)
def test_encodings_are_undone_and_no_longer_named(server: RawServer, coding: str, packed: bytes) -> None:
    server.behave = answering(encoded(coding, packed))
    response = client_of(server.instance()).request("GET", "users", "/")
    assert response.data == TEXT
    assert "content-encoding" not in response.headers
    assert "content-length" not in response.headers


@pytest.mark.parametrize("length", [0, 1, 65536, 65537, 131_318])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw"])
def test_decoder_gives_all_of_it_in_bounded_pieces(coding: str, length: int) -> None:
    """131318 zeros without a wrapping: all is fed by the time that the second piece is full."""
    pack = {"gzip": gzip.compress, "deflate": zlib.compress, "raw": raw_deflate}[coding]
    packed = pack(bytes(length))
    for step in (1, 7, len(packed)):
        decoder = Decoder("gzip" if coding == "gzip" else "deflate")
        pieces = [
            piece for at in range(0, len(packed), step) for piece in decoder.feed(packed[at : at + step])
        ]
        decoder.end()
        assert b"".join(pieces) == bytes(length)
        assert max(map(len, pieces), default=0) <= 65536


def test_encodings_stay_where_the_answer_is_streamed_or_unknown(server: RawServer) -> None:
    packed = gzip.compress(TEXT)
    server.behave = answering(encoded("gzip", packed), encoded("br", b"whatever"))
    calls = client_of(server.instance())
    streamed = calls.request("GET", "users", "/", stream=True)
    assert streamed.data == packed
    assert streamed.headers["content-encoding"] == "gzip"
    unknown = calls.request("GET", "users", "/")
    assert (unknown.data, unknown.headers["content-encoding"]) == (b"whatever", "br")


def test_answer_without_a_body_may_name_an_encoding(server: RawServer) -> None:
    server.behave = answering(encoded("gzip", b""))
    assert client_of(server.instance()).request("GET", "users", "/").data == b""


@pytest.mark.parametrize(
    "packed",
    [gzip.compress(TEXT)[:-9], b"not gzip", gzip.compress(b"a") + b"more", gzip.compress(TEXT)[:5]],
    # gzip writes the time into what it packs, and the workers of one run must agree on the tests' names.
    ids=["cut short", "not gzip", "followed by more", "cut in its head"],
)
def test_encoding_that_is_broken_is_a_lost_answer(server: RawServer, packed: bytes) -> None:
    server.behave = answering(encoded("gzip", packed))
    with pytest.raises(ResponseLost):
        client_of(server.instance()).request("GET", "users", "/")


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


def test_announced_length_over_the_limit_is_not_read(server: RawServer) -> None:
    sent: list[int] = []

    def behave(peer: Peer) -> None:
        peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        sent.append(peer.repeat(b"x" * 65536, 160_000))

    server.behave = behave
    calls = client_of(server.instance(), max_body_bytes=1_000_000)
    with pytest.raises(AnswerTooLarge):
        calls.request("GET", "users", "/")
    eventually(lambda: sent, within_s=5)
    assert sent[0] < 20_000_000, "what the socket buffers hold, and no more"
    assert calls.breakers()["users"].failures == 0, "a long answer is no failure"


def test_announced_length_over_the_limit_is_not_waited_for(server: RawServer) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        peer.closed()

    server.behave = behave
    began = time.monotonic()
    with pytest.raises(AnswerTooLarge):
        client_of(server.instance(), attempt_timeout_s=3).request("GET", "users", "/")
    assert time.monotonic() - began < 1 * time_scale()


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


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(bytes(100_000_000), 1),
        # Blocks that unpack to nothing: the limit is on what comes as well.
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"\0\0\0\xff\xff" * 400_000,
    ],
)
def test_what_is_packed_small_or_unpacks_to_nothing_is_bounded(server: RawServer, packed: bytes) -> None:
    server.behave = answering(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
        % (len(packed), packed)
    )
    calls = client_of(server.instance(), max_body_bytes=1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(AnswerTooLarge):
            calls.request("GET", "users", "/")
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
