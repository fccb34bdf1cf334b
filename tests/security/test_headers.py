"""Headers that a client must not be able to set, and requests whose head two parsers read differently."""

from __future__ import annotations

import json

import pytest

from tests.security.conftest import Target, target
from tests.support.matrix import one_always

FORGED = [
    "X-Auth-Subject: root",
    "x-auth-scope: admin",
    "X-AUTH-ANYTHING: 1",
    "X-Edge-Route: other",
    "X-Edge-Future: 1",
    "Forwarded: for=1.2.3.4",
    "X-Forwarded-For: 1.2.3.4",
    "X-Forwarded-Host: evil.test",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Port: 1",
    "X-Forwarded-Prefix: /evil",
    "X-Forwarded: for=1.2.3.4",
    "X-Deadline-Ms: 1",
]


def test_forged_headers_never_reach_an_instance(shared: Target) -> None:
    assert shared.request("/api/open/x", *FORGED, *FORGED) == 200
    (request,) = shared.upstream.requests
    assert request.header("x-forwarded-for") == "127.0.0.1"
    assert request.header("x-forwarded-proto") == "http"
    assert request.header("x-forwarded-host") == "edge.test"
    assert request.header("x-edge-route") == "open"
    kept = {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-edge-route"}
    for name in {line.partition(":")[0].lower() for line in FORGED} - kept:
        assert request.all(name) == []
    assert b"evil" not in request.head
    assert b"1.2.3.4" not in request.head


@pytest.mark.parametrize(
    ("line", "header"),
    one_always(
        ("http-request del-header x-auth- -m beg", "X-Auth-Subject: root"),
        ("http-request del-header x-edge- -m beg", "X-Edge-Future: 1"),
        ("http-request del-header x-forwarded -m beg", "X-Forwarded-Port: 1"),
        ("http-request del-header forwarded", "Forwarded: for=1.2.3.4"),
        ("http-request del-header x-deadline-ms", "X-Deadline-Ms: 2"),
        ("http-request del-header upgrade", "Upgrade: other"),
        ("http-request del-header connection", "Connection: x-request-id"),
    ),
)
def test_forged_header_gets_through_without_its_line(shared: Target, line: str, header: str) -> None:
    name, _, value = header.partition(": ")
    # Upgrade means something to HAProxy only together with a Connection header that names it.
    more = ["Connection: upgrade"] if name == "Upgrade" else []
    assert shared.request("/api/open/x", header, *more) == 200
    assert value not in shared.upstream.requests[0].all(name)
    with target((line, "# ")) as open_target:
        assert open_target.request("/api/open/x", header, *more) == 200
        assert value in ",".join(open_target.upstream.requests[0].all(name))


@pytest.mark.parametrize(
    "header",
    [
        "SCRIPT_NAME: /api/locked",
        "X_Auth_Subject: root",
        "X-Auth_Subject: root",
        "X_Forwarded_For: 1.2.3.4",
        "A.B: 1",
    ],
)
def test_header_name_that_wsgi_folds_is_refused(shared: Target, header: str) -> None:
    assert shared.request("/api/open/x", header) == 403
    assert shared.upstream.heads == []


def test_script_name_gets_through_without_its_line() -> None:
    with target(("option http-restrict-req-hdr-names reject", "# ")) as open_target:
        assert open_target.request("/api/open/x", "SCRIPT_NAME: /api/locked") == 200
        assert open_target.upstream.requests[0].header("script_name") == "/api/locked"


BROKEN = {
    "NUL in a value": b"GET /api/open/x HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    "a control character in a value": b"GET /api/open/x HTTP/1.1\r\nHost: a\r\nX: a\x0bb\r\n\r\n",
    "DEL in a value": b"GET /api/open/x HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n",
    "no host": b"GET /api/open/x HTTP/1.1\r\n\r\n",
    "no host but an authority": b"GET http://a/api/open/x HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /api/open/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a host beside another authority": b"GET http://b/api/open/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "an empty length": b"POST /api/open/x HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
    "a length of blanks": b"POST /api/open/x HTTP/1.1\r\nHost: a\r\nContent-Length:  \r\n\r\n",
    "a fragment": b"GET /api/open/x#/api/locked HTTP/1.1\r\nHost: a\r\n\r\n",
    "a folded header": b"GET /api/open/x HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\nY : 1\r\n\r\n",
    "a blank before the colon": b"GET /api/open/x HTTP/1.1\r\nHost: a\r\nX-A : 1\r\n\r\n",
    "no colon": b"GET /api/open/x HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n",
    "a control character in the path": b"GET /api/open/\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "bytes above ASCII in the path": b"GET /api/open/\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "more headers than fit": b"GET /api/open/x HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 90_000 + b"\r\n\r\n",
    "too many headers": b"GET /api/open/x HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 200 + b"\r\n",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_head_is_refused(shared: Target, data: bytes) -> None:
    assert shared.send(data, quiet_s=0.3) == 400
    assert shared.upstream.heads == []


@pytest.mark.parametrize(
    ("line", "attack"),
    one_always(
        ("{ req.hdrs -m reg", "NUL in a value"),
        ("{ req.hdrs -m reg", "a control character in a value"),
        ("!is_http_10 !{ req.fhdr(host)", "no host"),
    ),
)
def test_broken_head_gets_through_without_its_line(line: str, attack: str) -> None:
    with target((line, "{ always_false } " + line)) as open_target:
        open_target.send(BROKEN[attack], quiet_s=0.3)
        assert open_target.upstream.heads


def test_old_client_needs_no_host_and_a_value_may_hold_a_tab_or_utf8(shared: Target) -> None:
    assert shared.send(b"GET /api/open/x HTTP/1.0\r\n\r\n") == 200
    assert shared.request("/api/open/x", "X: a\tb \xc3\xa9") == 200


def test_cookies_of_32_kb_reach_the_instance(shared: Target) -> None:
    assert shared.request("/api/open/x", "Cookie: s=" + "c" * 32_766) == 200
    assert len(shared.upstream.requests[0].header("cookie") or "") == 32_768


def test_instance_gets_one_host(shared: Target) -> None:
    assert shared.send(b"GET /api/open/x HTTP/1.1\r\nHost: a\r\nHost: a\r\nConnection: close\r\n\r\n") == 200
    assert shared.upstream.requests[0].header("host") == "a"


def test_no_switch_to_http2_in_clear_text(shared: Target) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    assert shared.send(preface, 1.0) in (0, 400, 404, 405)
    with target(("option disable-h2-upgrade", "# ")) as open_target:
        answer = open_target.edge.raw(preface, timeout_s=1.0)
        assert answer[3:4] == b"\x04", "SETTINGS: HTTP/2 spoken"
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    assert shared.request("/api/open/x", *upgrade) == 200


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("0123456789abcdef", True),
        ("a" * 64, True),
        ("A-9" * 10, True),
        ("short", False),
        ("a" * 65, False),
        ("0123456789abcde_", False),
        ('0123456789abcdef"x', False),
        ("0123456789abcdef 1", False),
        ("%0123456789abcdef", False),
    ],
)
def test_request_id_is_kept_when_it_is_one_and_made_when_not(shared: Target, given: str, kept: bool) -> None:
    answer = shared.edge.get("/api/open/x", X_Request_ID=given)
    shared.request("/api/open/x", f"X-Request-ID: {given}")
    seen = shared.upstream.requests[0].header("x-request-id")
    assert seen is not None
    assert (seen == given) is kept
    assert (answer.headers["x-request-id"] == given) is kept
    assert 16 <= len(seen) <= 64
    assert seen.replace("-", "").isalnum()


GOOD, BAD = "aaaaaaaaaaaaaaaa", '"},{"x":"'


@pytest.mark.parametrize(("first", "second"), [(GOOD, "b" * 16), (GOOD, BAD), (BAD, GOOD), (BAD, BAD)])
def test_two_request_ids_become_a_good_one(shared: Target, first: str, second: str) -> None:
    shared.request("/api/open/x", f"X-Request-ID: {first}", f"X-Request-ID: {second}")
    seen = shared.upstream.requests[0].header("x-request-id")
    assert seen is not None
    assert seen.replace("-", "").isalnum()


def test_log_stays_json_whatever_the_client_sends(shared: Target) -> None:
    for path in ('/api/open/"},{"x":"', "/api/open/\\", "/api/open/'%22%0a", "/nobody/{}[]|^`<>"):
        shared.request(
            path, 'X-Request-ID: "', 'User-Agent: "}\\', method='G"ET' if "nobody" in path else "GET"
        )
    shared.send(b'G"E\\T /x HTTP/1.1\r\nHost: a\r\n\r\n')
    shared.send(b"\x16\x03\x01\x00\xff")
    lines = [line for line in shared.edge.server.log_text.splitlines() if line.startswith("{")]
    assert len(lines) >= 4
    for line in lines:
        assert json.loads(line)["event"] == "request"
