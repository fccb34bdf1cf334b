"""How a caller's arguments become a request, checked before anything is sent."""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from discovery.http.body import OnceBody
from discovery.http.headers import field_line, lower_name
from discovery.http.transport import Outgoing
from discovery.resilience.retry import may_run_twice

DEADLINE_HEADER = "X-Deadline-Ms"
# RFC 9110, section 7.6.1: these concern one connection and are not passed on; and what is ours to set. An Expect would have the
# instance say that it is ready for a body which is on its way already.
DROPPED_HEADERS = frozenset(
    {
        "connection",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        DEADLINE_HEADER.lower(),
    }
)
# RFC 9110, section 8.6: these say so when they bring no body.
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_METHOD = re.compile(r"[A-Z]{1,20}")
# Visible ASCII but no #: the caller has to percent-encode anything else.
_PATH = re.compile(r"/[!-\"$-~]*")
_MAX_LENGTH_DIGITS = 18

Query = Mapping[str, Any] | Sequence[tuple[str, Any]]
Body = bytes | str | Iterable[bytes] | None


class Lines:
    """The header lines of a request. Raises ValueError for what could not be sent to any instance.

    What `own` has (names and values, None for none) goes in place of the caller's. A Content-Length is believed for a body
    that is an iterator.
    """

    def __init__(self, given: Mapping[str, str], own: Sequence[tuple[str, str | None]]) -> None:
        self.names: set[str] = set()
        self.length: int | None = None
        self._lines: list[str] = []
        for name, value in own:
            if value:
                self.add(name, value)
        taken = DROPPED_HEADERS | self.names if self.names else DROPPED_HEADERS
        for name, value in given.items():
            low = lower_name(name)
            if low == "content-length":
                self.length = _length(value, self.length)
            elif low not in taken:
                self.names.add(low)
                self._lines.append(field_line(name, value))
        if "accept-encoding" not in self.names:
            self.add("Accept-Encoding", "identity")

    def add(self, name: str, value: str) -> None:
        self.names.add(lower_name(name))
        self._lines.append(field_line(name, value))

    def encoded(self) -> bytes:
        try:
            return "".join(self._lines).encode("latin-1")
        except UnicodeEncodeError as error:
            raise ValueError(f"a header's value is not Latin-1: {error}") from error


def outgoing(
    method: str,
    service: str,
    target: str,
    headers: Lines,
    body: Body = None,
    json: Any = None,
    host: str | None = None,
) -> Outgoing:
    """The request that a caller's arguments ask for. Raises ValueError for one that could not be sent to any instance."""
    method = method.upper()
    if not _METHOD.fullmatch(method):
        raise ValueError(f"no method: {method!r}")
    twice = may_run_twice(method, headers.names)
    sent = _body(headers, body, json)
    length = None
    if isinstance(sent, OnceBody):
        length = headers.length
        if length is None:
            headers.add("Transfer-Encoding", "chunked")
        else:
            headers.add("Content-Length", str(length))
    elif sent is not None or method in _WITH_BODY:
        headers.add("Content-Length", str(len(sent or b"")))
    start = f"{method} {target} HTTP/1.1\r\n".encode("ascii")
    host_line = field_line("Host", host).encode("latin-1") if host else b""
    return Outgoing(service, method, start, headers.encoded(), sent, length, twice, host_line)


def _body(headers: Lines, body: Body, json: Any) -> bytes | OnceBody | None:
    if json is not None:
        if body is not None:
            raise ValueError("give body or json, not both")
        if "content-type" not in headers.names:
            headers.add("Content-Type", "application/json")
        return jsonlib.dumps(json).encode()
    if isinstance(body, str):
        return body.encode()
    if body is None or isinstance(body, bytes):
        return body
    return OnceBody(body)


def _length(value: str, before: int | None) -> int:
    """A Content-Length. Raises ValueError for an invalid one, and for a second one that differs."""
    if not (value.isascii() and value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS):
        raise ValueError(f"no Content-Length: {value[:40]!r}")
    length = int(value)
    if before not in (None, length):
        raise ValueError("two different Content-Lengths")
    return length


def target(path: str, query: Query | None) -> str:
    """Path and query as they are sent. Raises ValueError for an invalid path."""
    if not _PATH.fullmatch(path):
        raise ValueError(f"no path, or not percent-encoded: {path[:80]!r}")
    if not query:
        return path
    return f"{path}{'&' if '?' in path else '?'}{urlencode(query, doseq=True)}"
