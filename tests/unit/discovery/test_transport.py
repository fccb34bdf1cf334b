"""What the transport sends, byte by byte, and what it refuses to send."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from discovery import ConnectFailed, Instance, RetrySettings, ServiceClient, StaticView
from tests.support.raw import ANSWER, RawServer, answering, client_of, raw_server, recording


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server(answering(ANSWER)) as raw:
        raw.behave = recording(raw, lambda peer: peer.say(ANSWER))
        yield raw


def fields_of(request: bytes) -> list[bytes]:
    return request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]


def test_request_as_it_goes_out(server: RawServer) -> None:
    client_of(server.instance()).request(
        "GET", "users", "/a?b=1", headers={"X-A": "caf\xe9\t1"}, request_id="0123456789abcdef", deadline_s=3
    )
    line, host, *fields = server.requests[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert line == b"GET /a?b=1 HTTP/1.1"
    assert host == b"Host: 127.0.0.1:%d" % server.port
    assert fields[:3] == [b"X-Request-ID: 0123456789abcdef", b"X-A: caf\xe9\t1", b"Accept-Encoding: identity"]
    assert [field.partition(b": ")[0] for field in fields[3:]] == [b"X-Deadline-Ms"]


@pytest.mark.parametrize(
    ("method", "body", "length"),
    [
        ("GET", None, None),
        ("DELETE", None, None),
        ("POST", None, b"0"),
        ("PUT", b"abc", b"3"),
        ("GET", b"", b"0"),
    ],
)
def test_length_is_told_where_there_is_one(
    server: RawServer, method: str, body: bytes | None, length: bytes | None
) -> None:
    client_of(server.instance()).request(method, "users", "/", body=body, headers={"content-length": "77"})
    told = [field for field in fields_of(server.requests[0]) if field.startswith(b"Content-Length")]
    assert told == ([] if length is None else [b"Content-Length: " + length])


def test_long_body_goes_out_whole(server: RawServer) -> None:
    body = bytes(range(256)) * 40_000
    client_of(server.instance()).request("PUT", "users", "/", body=body)
    assert server.requests[0].partition(b"\r\n\r\n")[2] == body


def test_iterator_is_sent_by_chunks_and_empty_pieces_do_not_end_it(server: RawServer) -> None:
    client_of(server.instance()).request("PUT", "users", "/", body=iter([b"ab", b"", b"c" * 70_000]))
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"Content-Length" not in head
    expected = b"2\r\nab\r\n10000\r\n" + b"c" * 65536 + b"\r\n1170\r\n" + b"c" * 4464 + b"\r\n0\r\n\r\n"
    assert body == expected


def test_iterator_of_known_length_is_sent_as_it_is(server: RawServer) -> None:
    calls = client_of(server.instance())
    calls.request("PUT", "users", "/", body=iter([b"ab", b"", b"c"]), headers={"Content-Length": "3"})
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert b"Content-Length: 3" in head
    assert b"Transfer-Encoding" not in head
    assert body == b"abc"


@pytest.mark.parametrize("pieces", [[b"ab"], [b"abcd"], [b"abc", b"GET /admin HTTP/1.1\r\n\r\n"]])
def test_body_of_another_length_than_announced_is_an_error_and_spends_the_connection(
    server: RawServer, pieces: list[bytes]
) -> None:
    calls = client_of(server.instance())
    calls.request("GET", "users", "/")
    with pytest.raises(ValueError, match="Content-Length"):
        calls.request("PUT", "users", "/", body=iter(pieces), headers={"Content-Length": "3"})
    calls.request("GET", "users", "/after")
    assert len(server.peers) == 2
    assert not any(b"admin" in request for request in server.requests)
    assert calls.breakers()["users"].failures == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "a\r\nX-B: b"},
        {"X-A": "a\nb"},
        {"X-A": "a\rb"},
        {"X-A": "a\0b"},
        {"X-A": "a\x7fb"},
        {"X-A": "\u65e5"},
        {"X-A\r\nX-B": "b"},
        {"X-A: b\r\nX-B": "b"},
        {"X A": "b"},
        {"X-\xe9": "b"},
        {"": "b"},
        {"Content-Length": "-1"},
        {"Content-Length": "1_0"},
        {"Content-Length": "\u0661"},
        {"Content-Length": "1", "content-length": "2"},
    ],
)
def test_headers_that_say_more_than_they_should_are_refused(
    server: RawServer, headers: dict[str, str]
) -> None:
    with pytest.raises(ValueError):
        client_of(server.instance()).request("POST", "users", "/", headers=headers, body=iter([b"a"]))
    assert not server.peers


@pytest.mark.parametrize("field", ["request_id", "traceparent"])
def test_ids_that_say_more_than_they_should_are_refused(server: RawServer, field: str) -> None:
    with pytest.raises(ValueError):
        client_of(server.instance()).request("GET", "users", "/", **{field: "a\r\nX-Auth-Subject: root"})  # type: ignore[arg-type]
    assert not server.peers


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/a\0", "/\xe9", "a", "", "/a#b", "/a\x7f"])
def test_targets_that_say_more_than_they_should_are_refused(server: RawServer, path: str) -> None:
    with pytest.raises(ValueError):
        client_of(server.instance()).request("GET", "users", path)
    assert not server.peers


def test_tokens_that_say_more_than_they_should_are_refused(server: RawServer) -> None:
    calls = ServiceClient(
        StaticView([server.instance()]), token_source=lambda within_s: "a\r\nX-Auth-Subject: root"
    )
    with pytest.raises(ValueError):
        calls.request("GET", "users", "/")
    assert not server.peers


def test_ipv6_address_is_called_and_named_in_brackets() -> None:
    with raw_server(answering(ANSWER), family=socket.AF_INET6) as server:
        server.behave = recording(server, lambda peer: peer.say(ANSWER))
        assert client_of(server.instance()).request("GET", "users", "/").data == b"ok"
        assert b"\r\nHost: [::1]:%d\r\n" % server.port in server.requests[0]


def test_name_in_place_of_an_address_is_looked_up(server: RawServer) -> None:
    assert client_of(server.instance(address="localhost")).request("GET", "users", "/").data == b"ok"


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("a\r\nX: y", 1),
        ("", 1),
        ("999.1.1.1", 1),
        ("127.0.0.1", 70_000),
        ("127.0.0.1", -1),
        ("a" * 300, 1),
        ("::g", 1),
    ],
)
def test_instance_with_an_address_that_is_none_cannot_be_connected_to(
    server: RawServer, address: str, port: int
) -> None:
    bad = Instance("users", "a", "node-1", address, port)
    with pytest.raises(ConnectFailed):
        client_of(bad).request("GET", "users", "/")
    calls = client_of(bad, server.instance(id="b"), retry=RetrySettings(attempts=2))
    assert calls.request("POST", "users", "/", balance="first").instance.id == "b"
