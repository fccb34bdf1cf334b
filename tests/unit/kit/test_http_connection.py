"""The gevent worker's own way from bytes to WSGI and back: what it takes, what it refuses, and how it frames answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from services.kit.http_input import MAX_FIELD, MAX_HEAD, MAX_TARGET, Body, BrokenOff, Request, Requests
from services.kit.http_output import Reply

GET = b"GET /a%20b/c?d=%2F&e HTTP/1.1\r\nHost: x\r\nX-One: 1\r\n\r\n"
CHUNKED = b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n3\r\n me\r\n0\r\nX-Late: 1\r\n\r\n"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    theirs.settimeout(5)
    with ours, theirs:
        yield ours, theirs


def parsed(data: bytes, piece: int = 1 << 20) -> Requests:
    requests = Requests()
    for start in range(0, len(data), piece):
        requests.feed(data[start : start + piece])
    return requests


def only(data: bytes, piece: int = 1 << 20) -> Request:
    requests = parsed(data, piece)
    assert requests.error is None
    (request,) = requests.ready
    return request


# -- in


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_a_head_says_the_same_however_it_is_cut(piece: int) -> None:
    request = only(GET, piece)
    assert request.complete
    assert request.keep
    assert request.environ == {
        "HTTP_HOST": "x",
        "HTTP_X_ONE": "1",
        "REQUEST_METHOD": "GET",
        "RAW_URI": "/a%20b/c?d=%2F&e",
        "PATH_INFO": "/a b/c",
        "QUERY_STRING": "d=%2F&e",
        "SERVER_PROTOCOL": "HTTP/1.1",
    }


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_chunks_are_joined_and_a_trailer_is_no_header(
    piece: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    requests = parsed(CHUNKED, piece)
    (request,) = requests.ready
    assert Body(request, requests, pair[0]).read() == b"hello me"
    assert "HTTP_X_LATE" not in request.environ
    assert request.complete


def test_a_body_is_read_from_the_connection_as_it_is_asked_for(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    requests = parsed(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n01")
    (request,) = requests.ready
    body = Body(request, requests, ours)
    assert body.read(2) == b"01"
    theirs.sendall(b"23456")
    assert body.read(3) == b"234"
    theirs.sendall(b"789" + GET)
    assert body.read() == b"56789"
    assert body.read() == body.read(5) == b""
    assert len(requests.ready) == 2


def test_lines_of_a_body_can_be_read(pair: tuple[socket.socket, socket.socket]) -> None:
    requests = parsed(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\na\nb\nc")
    assert list(Body(requests.ready[0], requests, pair[0])) == [b"a\n", b"b\n", b"c"]


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n012",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    ],
)
def test_a_body_that_does_not_come_whole_is_an_error(
    data: bytes, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    requests = parsed(data)
    theirs.shutdown(socket.SHUT_WR)
    body = Body(requests.ready[0], requests, ours)
    with pytest.raises(BrokenOff):
        body.read()


def test_who_waits_to_be_asked_for_his_body_is_asked_when_it_is_read(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    requests = parsed(b"POST / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n")
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    theirs.setblocking(True)
    theirs.sendall(b"ok")
    assert Body(requests.ready[0], requests, ours).read() == b"ok"
    assert theirs.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"


def test_requests_in_one_piece_wait_their_turn() -> None:
    requests = parsed(GET + CHUNKED + GET)
    assert [each.environ["REQUEST_METHOD"] for each in requests.ready] == ["GET", "POST", "GET"]
    assert all(each.complete for each in requests.ready)


def test_what_follows_a_good_request_spoils_itself_only() -> None:
    requests = parsed(GET + b"rubbish\r\n\r\n")
    assert len(requests.ready) == 1
    assert requests.error is not None


def test_names_with_an_underscore_are_left_out_and_repeated_ones_joined() -> None:
    request = only(b"GET / HTTP/1.1\r\nX_Auth_Subject: admin\r\nX-Auth: a \r\nx-auth:b\t\r\n\r\n")
    assert request.environ["HTTP_X_AUTH"] == "a,b"
    assert "HTTP_X_AUTH_SUBJECT" not in request.environ


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://other/a/b?c", "/a/b", "c"),
        (b"/a#b?c", "/a", ""),
        (b"/%C3%A4%00", "/\xc3\xa4\x00", ""),
        (b"//a/../b", "//a/../b", ""),
        (b"/?", "/", ""),
    ],
)
def test_targets(target: bytes, path: str, query: str) -> None:
    environ = only(b"GET " + target + b" HTTP/1.1\r\n\r\n").environ
    assert (environ["PATH_INFO"], environ["QUERY_STRING"], environ["RAW_URI"]) == (
        path,
        query,
        target.decode(),
    )


BAD = {
    "two lengths": (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
    "a list of lengths": (b"POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n", 400),
    "a negative length": (b"POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n", 400),
    "a signed length": (b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n", 400),
    "no length": (b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", 400),
    "length and chunks": (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "chunks and length": (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400),
    "another coding": (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "two codings": (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "chunked twice": (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    "chunks of 1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
    "a folded line": (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
    "a blank in a name": (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
    "a NUL": (b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n", 400),
    "a bare CR": (b"GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n", 400),
    "no version": (b"GET /\r\n\r\n", 505),
    "another version": (b"GET / HTTP/3.0\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "an unknown method": (b"NONSENSE / HTTP/1.1\r\n\r\n", 501),
    "a small method": (b"get / HTTP/1.1\r\n\r\n", 501),
    "a relative target": (b"GET a HTTP/1.1\r\n\r\n", 400),
    "a target beyond ASCII": (b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 501),
    "a long target": (b"GET /" + b"a" * MAX_TARGET + b" HTTP/1.1\r\n\r\n", 414),
    "a long field": (b"GET / HTTP/1.1\r\nA: " + b"a" * MAX_FIELD + b"\r\n\r\n", 431),
    "many fields": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
    "a head without an end": (b"GET / HTTP/1.1\r\nA: " + b"a" * (MAX_HEAD + 1), 431),
}


@pytest.mark.parametrize("piece", [1 << 20, 1000])
@pytest.mark.parametrize(("data", "status"), BAD.values(), ids=BAD.keys())
def test_what_is_no_request_is_refused(data: bytes, status: int, piece: int) -> None:
    requests = parsed(data, piece)
    assert requests.error is not None
    assert requests.error.status == status
    assert not requests.ready


def test_an_upgrade_is_answered_as_a_plain_request_and_is_the_last() -> None:
    requests = parsed(
        b"GET /x HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00GET / HTTP/1.1\r\n\r\n"
    )
    (request,) = requests.ready
    assert request.complete
    assert not request.keep


@pytest.mark.parametrize(
    ("head", "keep"),
    [
        (b"HTTP/1.1\r\n\r\n", True),
        (b"HTTP/1.1\r\nConnection: close\r\n\r\n", False),
        (b"HTTP/1.0\r\n\r\n", False),
        (b"HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
    ],
)
def test_who_keeps_a_connection(head: bytes, keep: bool) -> None:
    assert only(b"GET / " + head).keep == keep


# -- out


def answered(
    pair: tuple[socket.socket, socket.socket],
    request: bytes,
    status: str,
    headers: list[tuple[str, str]],
    *pieces: bytes,
    keep: bool = True,
) -> tuple[dict[str, str], bytes, bool]:
    """Headers, the bytes after them, and whether the connection may be kept."""
    ours, theirs = pair
    reply = Reply(only(request), ours, lambda: keep)
    reply.start(status, headers)
    reply.write_all(pieces)
    ours.shutdown(socket.SHUT_WR)
    data = b""
    while part := theirs.recv(65536):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first == f"HTTP/1.1 {status}"
    return dict(line.split(": ", 1) for line in lines), body, reply.keep


PLAIN = b"GET / HTTP/1.1\r\n\r\n"


def test_an_answer_of_known_length_goes_out_as_it_is(pair: tuple[socket.socket, socket.socket]) -> None:
    headers, body, keep = answered(
        pair, PLAIN, "200 OK", [("Content-Length", "4"), ("X-A", "1")], b"ab", b"", b"cd"
    )
    assert body == b"abcd"
    assert keep
    assert headers["X-A"] == "1"
    assert headers["Date"].endswith(" GMT")
    assert "Connection" not in headers


def test_an_answer_of_unknown_length_goes_out_in_chunks_or_ends_with_the_connection(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    headers, body, keep = answered(pair, PLAIN, "200 OK", [], b"hello", b"", b"x" * 16)
    assert (headers["Transfer-Encoding"], body, keep) == (
        "chunked",
        b"5\r\nhello\r\n10\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n",
        True,
    )


def test_one_of_http_1_0_gets_no_chunks(pair: tuple[socket.socket, socket.socket]) -> None:
    request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    headers, body, keep = answered(pair, request, "200 OK", [], b"hello")
    assert (headers.get("Transfer-Encoding"), headers["Connection"], body, keep) == (
        None,
        "close",
        b"hello",
        False,
    )


def test_one_of_http_1_0_is_told_that_the_connection_is_kept(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    headers, _, keep = answered(pair, request, "200 OK", [("Content-Length", "1")], b"x")
    assert (headers["Connection"], keep) == ("keep-alive", True)


@pytest.mark.parametrize(
    ("request_", "status", "length"),
    [
        (b"HEAD / HTTP/1.1\r\n\r\n", "200 OK", "5"),
        (PLAIN, "304 Not Modified", "5"),
        (PLAIN, "204 No Content", None),
    ],
)
def test_an_answer_that_has_no_body_sends_none(
    request_: bytes, status: str, length: str | None, pair: tuple[socket.socket, socket.socket]
) -> None:
    headers, body, keep = answered(pair, request_, status, [("Content-Length", "5")], b"hello")
    assert (headers.get("Content-Length"), headers.get("Transfer-Encoding"), body, keep) == (
        length,
        None,
        b"",
        True,
    )


def test_an_empty_answer_of_unknown_length_has_its_end(pair: tuple[socket.socket, socket.socket]) -> None:
    assert answered(pair, PLAIN, "200 OK", [])[1] == b"0\r\n\r\n"


def test_more_than_announced_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    assert answered(pair, PLAIN, "200 OK", [("Content-Length", "3")], b"ab", b"cdef")[1:] == (b"abc", True)


def test_less_than_announced_ends_the_connection(pair: tuple[socket.socket, socket.socket]) -> None:
    assert answered(pair, PLAIN, "200 OK", [("Content-Length", "9")], b"ab")[1:] == (b"ab", False)


def test_a_worker_that_ends_says_so(pair: tuple[socket.socket, socket.socket]) -> None:
    headers, _, keep = answered(pair, PLAIN, "200 OK", [("Content-Length", "0")], keep=False)
    assert (headers["Connection"], keep) == ("close", False)


def test_headers_of_one_connection_are_the_servers_own(pair: tuple[socket.socket, socket.socket]) -> None:
    given = [
        ("Connection", "upgrade"),
        ("Transfer-Encoding", "gzip"),
        ("Keep-Alive", "1"),
        ("Content-Length", "0"),
    ]
    headers, _, _ = answered(pair, PLAIN, "200 OK", given)
    assert set(headers) == {"Date", "Content-Length"}


@pytest.mark.parametrize("value", ["a\r\nX-Injected: 1", "a\nb", "a\rb", "a\0b"])
@pytest.mark.parametrize("where", ["name", "value", "status"])
def test_a_line_break_in_a_head_is_no_head(
    value: str, where: str, pair: tuple[socket.socket, socket.socket]
) -> None:
    reply = Reply(only(PLAIN), pair[0], lambda: True)
    header = (value, "1") if where == "name" else ("X-A", value) if where == "value" else ("X-A", "1")
    with pytest.raises(ValueError, match="line break"):
        reply.start(f"200 {value}" if where == "status" else "200 OK", [header])
    assert not reply.sent


def test_a_body_before_its_head_is_the_applications_mistake(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    reply = Reply(only(PLAIN), pair[0], lambda: True)
    with pytest.raises(RuntimeError):
        reply.write(b"x")
