"""HTTP of every kind of worker: what is no request is refused at once and in our format, and what is one is framed right."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.kit.running import TOKEN_PROGRAM, running
from tests.support.eventually import eventually, time_scale
from tests.support.instances import RunningInstance
from tests.support.processor import used_s
from tests.support.signer import Signer, signer

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def keys() -> Iterator[Signer]:
    with signer() as one:
        yield one


@pytest.fixture(scope="module", params=["gthread", "gevent"])
def instance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, keys: Signer
) -> Iterator[RunningInstance]:
    folder = tmp_path_factory.mktemp("framing")
    env = {"AUTH_JWKS_URL": keys.url, "BODY_TIMEOUT_S": str(10 * time_scale())}
    env |= {"WORKER_CLASS": str(request.param), "WORKER_THREADS": "4", "UNREAD_TIMEOUT_S": "1"}
    with running(folder, program=TOKEN_PROGRAM, **env) as one:
        yield one


def connect(instance: RunningInstance) -> socket.socket:
    return socket.create_connection(("127.0.0.1", instance.port), timeout=20 * time_scale())


def until_closed(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def ask(instance: RunningInstance, request: bytes) -> tuple[int, bytes]:
    """The status and all of the one answer that these bytes get."""
    with connect(instance) as connection:
        connection.sendall(request)
        answer = until_closed(connection)
    return int(answer.split(b" ", 2)[1]), answer


def head(*lines: str, start: str = "POST /api/hello/raw HTTP/1.1") -> bytes:
    return "\r\n".join([start, *lines, "", ""]).encode("latin-1")


GET = head("Host: x", start="GET /api/hello HTTP/1.1")
CHUNKED = head("Host: x", "Transfer-Encoding: chunked")
LENGTH = "Content-Length: 3"

REFUSED = {
    "two lengths": (head("Host: x", LENGTH, "Content-Length: 4"), 400),
    "the same length twice": (head("Host: x", LENGTH, LENGTH), 400),
    "a list of lengths": (head("Host: x", "Content-Length: 3, 3"), 400),
    "a list of other lengths": (head("Host: x", "Content-Length: 1, 2"), 400),
    "a signed length": (head("Host: x", "Content-Length: +3"), 400),
    "no length": (head("Host: x", "Content-Length:"), 400),
    "a length and chunks": (head("Host: x", LENGTH, "Transfer-Encoding: chunked"), 400),
    "another coding": (head("Host: x", "Transfer-Encoding: xchunked"), 501),
    "an end without chunks": (head("Host: x", "Transfer-Encoding: gzip"), 400),
    "a comma too many": (head("Host: x", "Transfer-Encoding: chunked,"), 501),
    "chunked twice": (head("Host: x", "Transfer-Encoding: chunked, chunked"), 400),
    "chunks of HTTP/1.0": (
        head("Host: x", "Transfer-Encoding: chunked", start="POST / HTTP/1.0"),
        400,
    ),
    "no host": (head(start="GET /api/hello HTTP/1.1"), 400),
    "no host, but others": (head("X-A: 1", start="GET /api/hello HTTP/1.1"), 400),
    "two hosts": (head("Host: x", "Host: y"), 400),
    "a NUL in a value": (head("Host: x", "X-A: b\0c"), 400),
    "a control byte in a value": (head("Host: x", "X-A: b\x0bc"), 400),
    "a bare CR": (head("Host: x", "X-A: b\rX-C: d"), 400),
    "a folded line": (head("Host: x", "X-A: b", " c"), 400),
    "a blank in a name": (head("Host: x", "X-A : b"), 400),
    "a blank inside a name": (head("Host: x", "X Y: 1"), 400),
    "one word": (b"NONSENSE\r\n\r\n", 400),
    "no version": (b"GET /\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "another version": (b"GET / HTTP/3.0\r\n\r\n", 400),
    "a small method": (head("Host: x", start="get / HTTP/1.1"), 400),
    "a target beyond ASCII": (head("Host: x", start="GET /\xe4 HTTP/1.1"), 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "a long target": (head("Host: x", start=f"GET /{'a' * 9000} HTTP/1.1"), 414),
    "a target without an end": (b"GET /" + b"a" * MIB, 414),
    "a long field": (head("Host: x", f"X-A: {'a' * 40_000}"), 431),
    "a head without an end": (b"GET / HTTP/1.1\r\nX-A: " + b"a" * MIB, 431),
    "fields without an end": (b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 100_000, 431),
    "many fields": (head("Host: x", *["X-A: b"] * 101), 431),
    "another expectation": (head("Host: x", "Expect: all"), 417),
    "a length as a trailer": (CHUNKED + b"0\r\nContent-Length: 0\r\n\r\n", 400),
    "a coding as a trailer": (CHUNKED + b"0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "a NUL in a trailer": (CHUNKED + b"0\r\nX-A: b\0c\r\n\r\n", 400),
    "a chunk size that is none": (CHUNKED + b"zz\r\n", 400),
    "a chunk without its end": (CHUNKED + b"1\r\nabc\r\n0\r\n\r\n", 400),
    "a trailer without an end": (CHUNKED + b"0\r\nX-A: " + b"a" * MIB, 400),
    "trailers without an end": (CHUNKED + b"0\r\n" + b"X-A: b\r\n" * 100_000, 400),
    "a chunk extension without an end": (CHUNKED + b"1;a=" + b"a" * MIB, 400),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_request_is_refused_at_once_as_a_problem(
    instance: RunningInstance, data: bytes, status: int
) -> None:
    """The connection is left open: an answer that waits for its end would come from a time limit."""
    started = time.monotonic()
    with connect(instance) as connection:
        connection.settimeout(3 * time_scale())
        with contextlib.suppress(OSError):  # refused before all of it was sent
            connection.sendall(data)
        first = connection.recv(65536)
        assert first.startswith(b"HTTP/1."), first
        answer = first + until_closed(connection)
    assert time.monotonic() - started < 3 * time_scale()
    top, _, body = answer.partition(b"\r\n\r\n")
    assert int(top.split(b" ", 2)[1]) == status
    assert b"application/problem+json" in top
    problem = json.loads(body)
    assert set(problem) == {"type", "title", "status", "detail", "instance", "request_id", "layer", "service"}
    assert (problem["status"], problem["layer"], problem["service"]) == (status, "service", "hello")
    assert re.fullmatch("[0-9a-f]{32}", problem["request_id"])
    assert f"x-request-id: {problem['request_id']}".encode() in top.lower()


@pytest.mark.parametrize(
    "endless",
    [
        CHUNKED + b"0\r\nX-A: ",
        CHUNKED + b"0\r\nX-A: b\r\n",
        CHUNKED + b'1;a="',
        CHUNKED + b"1;a;",
        CHUNKED,
        b"GET / HTTP/1.1\r\nX-A: ",
    ],
    ids=["trailer", "trailers", "quoted extension", "extensions", "size", "field"],
)
def test_what_never_ends_costs_little(instance: RunningInstance, endless: bytes) -> None:
    """Once 60 s of processor time and 190 MB, and the worker was killed."""
    worker = instance.get("/api/hello").json()["pid"]
    before = used_s([worker])
    with connect(instance) as connection, contextlib.suppress(OSError):
        connection.sendall(endless)
        for _ in range(16):
            connection.sendall(b"1" * MIB)
    assert instance.get("/api/hello").json()["pid"] == worker
    assert used_s([worker]) - before < 1


def test_chunks_of_one_byte_hold_up_nobody(instance: RunningInstance) -> None:
    data = CHUNKED + b"1\r\nx\r\n" * 300_000 + b"0\r\n\r\n"
    with connect(instance) as connection, ThreadPoolExecutor(1) as pool:
        sent = pool.submit(connection.sendall, data)
        answers = pool.submit(connection.recv, 65536)
        served = 0
        while not answers.done():
            assert instance.ready()
            served += 1
        sent.result()
        assert answers.result().startswith(b"HTTP/1.1 200")
    assert served >= 3


def test_cookies_of_32_kib_pass(instance: RunningInstance) -> None:
    answer = instance.get("/api/hello/headers", headers={"Cookie": "a=" + "b" * 32 * 1024})
    assert len(answer.json()["cookie"]) == 2 + 32 * 1024


def test_trailers_change_nothing(instance: RunningInstance) -> None:
    data = head("Host: x", "Transfer-Encoding: chunked", start="GET /api/hello/headers HTTP/1.1")
    with connect(instance) as connection:
        connection.sendall(
            data + b"3;a=b\r\nabc\r\n0\r\nX-Late: 1\r\n\r\n" + head("Host: x", "Connection: close")
        )
        answers = until_closed(connection)
    assert b"x-late" not in answers.lower()
    assert answers.count(b"HTTP/1.1 200 OK") == 2


def test_requests_in_one_piece_are_answered_in_turn(instance: RunningInstance) -> None:
    body = head("Host: x", LENGTH) + b"abc"
    with connect(instance) as connection:
        connection.sendall(GET + body + CHUNKED + b"2\r\nab\r\n0\r\n\r\n" + GET + b"rubbish\r\n\r\n" + GET)
        answers = until_closed(connection)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"200", b"200", b"200", b"200", b"400"]
    assert re.findall(rb'{"bytes":(\d)', answers) == [b"3", b"2"]


def test_a_client_that_asks_to_be_asked_for_its_body_is_asked(instance: RunningInstance) -> None:
    with connect(instance) as connection:
        connection.sendall(head("Host: x", LENGTH, "Expect: 100-Continue", "Connection: close"))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert until_closed(connection).startswith(b"HTTP/1.1 200")


def test_an_answer_before_the_end_of_a_long_body_arrives(instance: RunningInstance) -> None:
    with connect(instance) as connection:
        connection.sendall(head("Host: x", f"Content-Length: {4 * MIB}"))
        for _ in range(2):
            time.sleep(0.1)
            connection.sendall(b"x" * MIB)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_the_head_of_a_stream_goes_out_before_its_first_piece(instance: RunningInstance) -> None:
    with connect(instance) as connection:
        connection.sendall(head("Host: x", start="GET /api/hello/quiet HTTP/1.1"))
        connection.settimeout(2 * time_scale())
        first = connection.recv(65536)
        assert first.endswith(b"\r\n\r\n"), "the head alone"
        assert b"Transfer-Encoding: chunked" in first


def test_clients_that_do_not_close_hold_up_nobody(instance: RunningInstance) -> None:
    closing = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    connections = [connect(instance) for _ in range(8)]
    started = time.monotonic()
    for connection in connections:
        connection.sendall(closing)
    for connection in connections:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert instance.ready()
    assert time.monotonic() - started < 4 * time_scale(), "gunicorn's gthread alone takes 2 s for each"
    for connection in connections:
        connection.close()


def test_clients_that_take_nothing_of_their_answers_are_left(instance: RunningInstance) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            deaf = stack.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", instance.port))
            deaf.sendall(head("Host: x", start="GET /api/hello/much HTTP/1.1"))
        time.sleep(0.3)
        # gthread's threads are free again.
        assert instance.ready()
        eventually(lambda: re.search("in_progress.* 1.0", instance.get("/metrics").text), 5)
    assert "Socket error processing request." not in instance.events()


LAST = "Connection: close"


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_body_limit_holds_whatever_the_framing(instance: RunningInstance, over: int, framing: str) -> None:
    half, rest = b"x" * (MIB // 2), b"x" * (MIB // 2 + over)
    if framing == "length":
        request = head("Host: x", LAST, f"Content-Length: {MIB + over}") + half + rest
    else:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (half, rest, b""))
        request = head("Host: x", LAST, "Transfer-Encoding: chunked") + chunks
    status, answer = ask(instance, request)
    assert status == (413 if over else 200)
    assert (b"application/problem+json" if over else b'{"bytes":%d}' % MIB) in answer


def test_chunked_json_above_the_limit_is_not_cut_to_fit(instance: RunningInstance) -> None:
    lines = ("Host: x", LAST, "Content-Type: application/json", "Transfer-Encoding: chunked")
    request = head(*lines, start="POST /api/hello/things HTTP/1.1")
    body = b'{"name":"x"}' + b" " * MIB
    assert ask(instance, request + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))[0] == 413


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/x/api/hello", ["SCRIPT_NAME: /x", "Script-Name: /x"]),
        ("/api/hello/", ["X-Forwarded-Proto: https", "X-Forwarded-For: 6.6.6.6"]),
    ],
)
def test_headers_move_no_path_and_change_no_scheme(
    instance: RunningInstance, path: str, fields: list[str]
) -> None:
    status, answer = ask(instance, head("Host: x", LAST, *fields, start=f"GET {path} HTTP/1.1"))
    assert status == 404
    assert b"https://" not in answer


def test_token_of_auths_key_opens_and_two_headers_do_not(instance: RunningInstance, keys: Signer) -> None:
    token = keys.token("u7")
    field = f"Authorization: Bearer {token}"
    answer = instance.get("/api/hello/me", headers={"Authorization": f"Bearer {token}"})
    assert answer.json() == {"subject": "u7"}
    assert ask(instance, head("Host: x", LAST, field, field, start="GET /api/hello/me HTTP/1.1"))[0] == 401
    wrong = instance.get("/api/hello/me", headers={"Authorization": f"Bearer {keys.token('u7', 'other')}"})
    assert wrong.status_code == 403
