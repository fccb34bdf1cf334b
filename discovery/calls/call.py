"""One call to a service over all its attempts, and how a caller's arguments become a request."""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from discovery.balancing.ejection import Identity
from discovery.http.body import OnceBody
from discovery.http.headers import field_line, lowered
from discovery.http.transport import Outgoing
from discovery.model import Balance
from discovery.resilience.patience import Patience
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
# Visible ASCII but no #: anything else has to be percent-encoded by whoever means it.
_PATH = re.compile(r"/[!-\"$-~]*")
_MAX_LENGTH_DIGITS = 18

Query = Mapping[str, Any] | Sequence[tuple[str, Any]]
Body = bytes | str | Iterable[bytes] | None


@dataclass(frozen=True, slots=True)
class Relay:
    """How somebody else's request is passed on, its answer streamed.

    The head is waited for `head_s` in each attempt, a body that has begun may be silent for `idle_s`. An answer that says it has
    at most `whole_bytes` is had whole before it is returned, if it comes without a pause. `host` is the Host that was asked for.
    """

    head_s: float
    idle_s: float
    whole_bytes: int = 0
    host: str | None = None


class Call:
    """What is asked, and how far it has come. `until` is the deadline on the monotonic clock. Belongs to one thread.

    `headers` must not end in what `own` has (names and values, None for none): that goes in its place. A Content-Length among
    them is believed for a body that is an iterator. Raises ValueError for a request that nobody could be sent.
    """

    __slots__ = (
        "_avoid",
        "_length",
        "_lines",
        "_names",
        "_told",
        "_tried",
        "attempts",
        "balance",
        "key",
        "max_body_bytes",
        "method",
        "outgoing",
        "patience",
        "patient",
        "relay",
        "returned",
        "sent",
        "service",
        "stream",
        "twice",
        "until",
    )

    def __init__(
        self,
        until: float,
        *,
        method: str,
        service: str,
        target: str,
        headers: Mapping[str, str],
        own: Sequence[tuple[str, str | None]],
        body: Body,
        json: Any,
        stream: bool,
        patience: Patience,
        relay: Relay | None,
        balance: Balance | None,
        key: str | None,
        avoid: Collection[Identity],
        tried: set[Identity] | None,
        max_body_bytes: int,
    ) -> None:
        self.method = method.upper()
        if not _METHOD.fullmatch(self.method):
            raise ValueError(f"no method: {method!r}")
        self.service = service
        self.until = until
        self.stream = stream
        self.patience = patience
        self.relay = relay
        self.max_body_bytes = max_body_bytes
        self.balance = balance
        self.key = key
        self.attempts = 0
        self.sent = 0
        self.patient = True
        self.returned = False
        self._avoid = avoid
        self._told = tried
        self._tried: set[Identity] = set()
        self._length: int | None = None
        self._add_headers(headers, own)
        self.twice = may_run_twice(self.method, self._names)
        self.outgoing = self._outgoing(target, self._body(body, json))

    def _add_headers(self, headers: Mapping[str, str], own: Sequence[tuple[str, str | None]]) -> None:
        names: set[str] = set()
        lines: list[str] = []
        for name, value in own:
            if value:
                names.add(lowered(name))
                lines.append(field_line(name, value))
        taken = DROPPED_HEADERS | names if names else DROPPED_HEADERS
        for name, value in headers.items():
            low = lowered(name)
            if low == "content-length":
                self._length = _length(value, self._length)
            elif low not in taken:
                names.add(low)
                lines.append(field_line(name, value))
        if "accept-encoding" not in names:
            lines.append("Accept-Encoding: identity\r\n")
        self._names, self._lines = names, lines

    def _body(self, body: Body, json: Any) -> bytes | OnceBody | None:
        if json is not None:
            if body is not None:
                raise ValueError("give body or json, not both")
            if "content-type" not in self._names:
                self._lines.append("Content-Type: application/json\r\n")
            return jsonlib.dumps(json).encode()
        if isinstance(body, str):
            return body.encode()
        if body is None or isinstance(body, bytes):
            return body
        return OnceBody(body)

    def _outgoing(self, target: str, body: bytes | OnceBody | None) -> Outgoing:
        length = None
        if isinstance(body, OnceBody):
            length = self._length
            framing = "Transfer-Encoding: chunked\r\n" if length is None else f"Content-Length: {length}\r\n"
            self._lines.append(framing)
        elif body is not None or self.method in _WITH_BODY:
            self._lines.append(f"Content-Length: {len(body or b'')}\r\n")
        try:
            fields = "".join(self._lines).encode("latin-1")
        except UnicodeEncodeError as error:
            raise ValueError(f"a header's value is not Latin-1: {error}") from error
        start = f"{self.method} {target} HTTP/1.1\r\n".encode("ascii")
        outgoing = Outgoing(self.service, self.method, start, fields, body, length, self.twice)
        if self.relay is not None and self.relay.host:
            outgoing.host_line = field_line("Host", self.relay.host).encode("latin-1")
        return outgoing

    def wants_token(self) -> bool:
        """Whether it has brought no Authorization of its own."""
        return "authorization" not in self._names

    def authorize(self, token: str | None) -> None:
        if token:
            self.outgoing.fields += field_line("Authorization", f"Bearer {token}").encode("latin-1")

    def goes_to(self, instance: Identity) -> None:
        """An attempt begins on this instance."""
        self.attempts += 1
        self._tried.add(instance)
        if self._told is not None:
            self._told.add(instance)

    def shunned(self) -> Collection[Identity]:
        """Whom to call only when no other is left."""
        return self._tried.union(self._avoid) if self._avoid else self._tried


def _length(value: str, before: int | None) -> int:
    """A Content-Length. Raises ValueError for what is none, and for a second one that differs."""
    if not (value.isascii() and value.isdigit() and len(value) <= _MAX_LENGTH_DIGITS):
        raise ValueError(f"no Content-Length: {value[:40]!r}")
    length = int(value)
    if before not in (None, length):
        raise ValueError("two different Content-Lengths")
    return length


def target(path: str, query: Query | None) -> str:
    """Path and query as they are sent. Raises ValueError for a path that is none."""
    if not _PATH.fullmatch(path):
        raise ValueError(f"no path, or not percent-encoded: {path[:80]!r}")
    if not query:
        return path
    return f"{path}{'&' if '?' in path else '?'}{urlencode(query, doseq=True)}"
