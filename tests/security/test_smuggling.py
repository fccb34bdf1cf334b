"""Request smuggling: whatever the framing, an instance sees one request, and never the one hidden in its body."""

from __future__ import annotations

import pytest

from tests.security.conftest import Target

HIDDEN = b"GET /api/locked/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def post(*headers: bytes, body: bytes) -> bytes:
    return b"\r\n".join([b"POST /api/open/x HTTP/1.1", b"Host: a", *headers, b"", b""]) + body


ATTACKS = {
    "CL.TE": post(
        b"Content-Length: %d" % (len(HIDDEN) + 5), b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + HIDDEN
    ),
    "TE.CL": post(
        b"Transfer-Encoding: chunked", b"Content-Length: 4", body=b"2e\r\n" + HIDDEN + b"\r\n0\r\n\r\n"
    ),
    "TE.TE": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x", body=b"0\r\n\r\n" + HIDDEN),
    "TE not last": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n" + HIDDEN),
    "TE with a tab": post(b"Transfer-Encoding:\tchunked", b"Content-Length: 5", body=b"0\r\n\r\n" + HIDDEN),
    "TE misspelt": post(b"Transfer-Encoding: xchunked", b"Content-Length: 5", body=b"0\r\n\r\n" + HIDDEN),
    "TE with a vertical tab": post(
        b"Transfer-Encoding: \x0bchunked", b"Content-Length: 5", body=b"0\r\n\r\n" + HIDDEN
    ),
    "two lengths": post(b"Content-Length: 0", b"Content-Length: %d" % len(HIDDEN), body=HIDDEN),
    "lengths in a list": post(b"Content-Length: 0, %d" % len(HIDDEN), body=HIDDEN),
    "a signed length": post(b"Content-Length: +%d" % len(HIDDEN), body=HIDDEN),
    "a hexadecimal length": post(b"Content-Length: 0x0", body=HIDDEN),
    "a length beyond 64 bits": post(b"Content-Length: 99999999999999999999999", body=HIDDEN),
    "an empty length": post(b"Content-Length:", body=HIDDEN),
    "a chunk size with a sign": post(b"Transfer-Encoding: chunked", body=b"+0\r\n\r\n" + HIDDEN),
    "a chunk size with 0x": post(b"Transfer-Encoding: chunked", body=b"0x0\r\n\r\n" + HIDDEN),
    "a chunk size beyond 64 bits": post(
        b"Transfer-Encoding: chunked", body=b"ffffffffffffffff0\r\n\r\n" + HIDDEN
    ),
    "a length in a GET": b"GET /api/open/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN)
    + HIDDEN,
    "HTTP/1.0 with chunks": post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + HIDDEN).replace(
        b"/1.1", b"/1.0", 1
    ),
    "TE with an empty member": post(b"Transfer-Encoding: chunked,", body=b"0\r\n\r\n" + HIDDEN),
    "TE twice, once empty": post(
        b"Transfer-Encoding: chunked", b"Transfer-Encoding:", body=b"0\r\n\r\n" + HIDDEN
    ),
    "a bare line feed": b"POST /api/open/x HTTP/1.1\nHost: a\nContent-Length: 0\n\n" + HIDDEN,
    "a line feed in a value": post(
        b"X: a\nTransfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n" + HIDDEN
    ),
}


@pytest.mark.parametrize("data", ATTACKS.values(), ids=ATTACKS.keys())
def test_hidden_request_never_reaches_the_instance(shared: Target, data: bytes) -> None:
    shared.send(data, 1.0, quiet_s=0.4)
    assert not any("smuggled" in target for target in shared.targets)
    assert len(shared.upstream.heads) <= 1
    for request in shared.upstream.requests:
        framings = request.all("content-length") + request.all("transfer-encoding")
        assert len(framings) <= 1, "an instance behind us would have to choose"


@pytest.mark.parametrize("name", ["TE with an empty member", "TE twice, once empty", "HTTP/1.0 with chunks"])
def test_framing_that_others_read_otherwise_is_refused(shared: Target, name: str) -> None:
    assert shared.send(ATTACKS[name], 1.0, quiet_s=0.4) == 400
    assert shared.upstream.heads == []


def test_pipelined_request_meets_the_lock(shared: Target) -> None:
    answers = shared.edge.raw(
        b"GET /api/open/x HTTP/1.1\r\nHost: a\r\n\r\n" + HIDDEN, timeout_s=1.0, quiet_s=0.3
    )
    assert answers.count(b"HTTP/1.1 200") == 1
    assert answers.count(b"HTTP/1.1 401") == 1
