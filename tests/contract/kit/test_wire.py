"""What arrives on the socket, past any client library: chunked bodies, spoofed headers, odd requests."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.kit.running import TOKEN_PROGRAM, Running, running
from tests.support.signer import Signer, signer

LIMIT = 5000


@pytest.fixture(scope="module")
def keys() -> Iterator[Signer]:
    with signer() as one:
        yield one


@pytest.fixture(scope="module", params=["gthread", "gevent"])
def instance(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, keys: Signer
) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("wire")
    env = {"MAX_BODY_BYTES": str(LIMIT), "AUTH_JWKS_URL": keys.url, "WORKER_CLASS": str(request.param)}
    with running(folder, program=TOKEN_PROGRAM, **env) as one:
        yield one


def send(instance: Running, request: bytes) -> tuple[int, bytes]:
    """Write raw bytes and read until the other side is done; answers the status (0 for none) and all that came."""
    with socket.create_connection(("127.0.0.1", instance.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        data = b""
        while part := connection.recv(65536):
            data += part
    return (int(data.split(b" ", 2)[1]) if data.startswith(b"HTTP/") else 0), data


def post(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 10 * LIMIT])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_body_limit_holds_whatever_the_framing(instance: Running, size: int, framing: str) -> None:
    body = b"x" * size
    if framing == "length":
        request = post("/api/hello/raw", body, f"Content-Length: {size}")
    else:
        parts = [body[start : start + 1000] for start in range(0, size, 1000)]
        request = post("/api/hello/raw", chunks(*parts), "Transfer-Encoding: chunked")
    status, data = send(instance, request)
    if size > LIMIT:
        assert status == 413
        assert b"application/problem+json" in data
    else:
        assert status == 200
        assert json.loads(data.split(b"\r\n\r\n", 1)[1]) == {"bytes": size}


def test_chunked_json_above_the_limit_is_not_cut_to_fit(instance: Running) -> None:
    body = b'{"name":"x"}' + b" " * LIMIT
    request = post(
        "/api/hello/things", chunks(body), "Transfer-Encoding: chunked", "Content-Type: application/json"
    )
    assert send(instance, request)[0] == 413


def test_script_name_header_moves_no_path(instance: Running) -> None:
    status, _ = send(
        instance,
        b"GET /x/api/hello HTTP/1.1\r\nHost: x\r\nSCRIPT_NAME: /x\r\nScript-Name: /x\r\nConnection: close\r\n\r\n",
    )
    assert status == 404


def test_forwarded_headers_change_neither_scheme_nor_address(instance: Running) -> None:
    status, data = send(
        instance,
        b"GET /api/hello/ HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: https\r\nX-Forwarded-For: 6.6.6.6\r\n"
        b"Connection: close\r\n\r\n",
    )
    assert b"https://" not in data
    assert status == 404


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /api/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /api/hello HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n",
        b"GET /api/hello HTTP/1.1\r\nHost: x\r\n folded: 1\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"NONSENSE\r\n\r\n",
    ],
)
def test_malformed_request_is_refused_without_a_traceback(instance: Running, request_: bytes) -> None:
    status, data = send(instance, request_)
    assert status == 0 or 400 <= status < 502
    assert b"Traceback" not in data
    assert instance.ready()


def test_token_of_auths_key_opens_and_two_headers_do_not(instance: Running, keys: Signer) -> None:
    token = keys.token("u7")
    answer = instance.get("/api/hello/me", headers={"Authorization": f"Bearer {token}"})
    assert answer.json() == {"subject": "u7"}
    head = "GET /api/hello/me HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    twice = f"{head}Authorization: Bearer {token}\r\nAuthorization: Bearer {token}\r\n\r\n"
    assert send(instance, twice.encode())[0] == 401
    wrong = instance.get("/api/hello/me", headers={"Authorization": f"Bearer {keys.token('u7', 'other')}"})
    assert wrong.status_code == 403


def test_identity_headers_of_the_edge_prove_nothing(instance: Running) -> None:
    answer = instance.get("/api/hello/me", headers={"X-Auth-Subject": "u7", "X-Auth-Scope": "user"})
    assert answer.status_code == 401


NO_REQUESTS = {
    "many headers": [f"X-{number}: 1" for number in range(120)],
    "transfer coding": ["Transfer-Encoding: gzip, chunked"],
    "header name": ["X Y: 1"],
}


@pytest.mark.parametrize("headers", NO_REQUESTS.values(), ids=NO_REQUESTS.keys())
def test_what_never_becomes_a_request_is_refused_as_a_problem(instance: Running, headers: list[str]) -> None:
    status, data = send(instance, post("/api/hello/raw", b"", *headers))
    head, _, body = data.partition(b"\r\n\r\n")
    assert 400 <= status < 600
    assert b"application/problem+json" in head
    problem = json.loads(body)
    assert (problem["status"], problem["layer"], problem["service"]) == (status, "service", "hello")
