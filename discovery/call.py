"""One call to a service over all its attempts, and how a caller's arguments become a request."""

from __future__ import annotations

import json as jsonlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from discovery.model import Balance
from discovery.outlier import Identity
from discovery.retry import may_run_twice
from discovery.transport import OnceBody

DEADLINE_HEADER = "X-Deadline-Ms"
# RFC 9110, section 7.6.1: these concern one connection and are not passed on; and what is ours to set.
DROPPED_HEADERS = frozenset(
    {
        "connection",
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
_METHOD = re.compile(r"[A-Z]{1,20}")
# Visible ASCII but no #: anything else has to be percent-encoded by whoever means it.
_PATH = re.compile(r"/[!-\"$-~]*")

Query = Mapping[str, Any] | Sequence[tuple[str, Any]]
Body = bytes | str | Iterable[bytes] | None


class Call:
    """What is asked, and how far it has come. `until` is the deadline on the monotonic clock. Belongs to one thread.

    Raises ValueError for a request that nobody could be sent.
    """

    def __init__(
        self,
        until: float,
        *,
        method: str,
        service: str,
        target: str,
        headers: Mapping[str, str],
        body: Body,
        json: Any,
        stream: bool,
        balance: Balance | None,
        key: str | None,
        avoid: Collection[Identity] = (),
        tried: set[Identity] | None = None,
        max_body_bytes: int = 0,
    ) -> None:
        self.method = method.upper()
        if not _METHOD.fullmatch(self.method):
            raise ValueError(f"no method: {method!r}")
        self.service = service
        self.target = target
        self.headers = {name: value for name, value in headers.items() if name.lower() not in DROPPED_HEADERS}
        self.body = self._body(body, json)
        self.until = until
        self.stream = stream
        self.max_body_bytes = max_body_bytes
        self.balance = balance
        self.key = key
        self.twice = may_run_twice(method, headers)
        self.attempts = 0
        self._tried: set[Identity] = set()
        self._avoid = avoid
        self._told = tried
        self.patient = True
        self.returned = False

    def _body(self, body: Body, json: Any) -> bytes | OnceBody | None:
        if json is not None:
            if body is not None:
                raise ValueError("give body or json, not both")
            if not self.has_header("content-type"):
                self.headers["Content-Type"] = "application/json"
            return jsonlib.dumps(json).encode()
        if isinstance(body, str):
            return body.encode()
        if body is None or isinstance(body, bytes):
            return body
        return OnceBody(body)

    @property
    def replayable(self) -> bool:
        """Whether the body can be sent again from its beginning."""
        return not (isinstance(self.body, OnceBody) and self.body.begun)

    def goes_to(self, instance: Identity) -> None:
        """An attempt begins on this instance."""
        self._tried.add(instance)
        if self._told is not None:
            self._told.add(instance)

    def shunned(self) -> Collection[Identity]:
        """Whom to call only when no other is left."""
        return self._tried.union(self._avoid) if self._avoid else self._tried

    def has_header(self, name: str) -> bool:
        """`name` in lower case."""
        return any(each.lower() == name for each in self.headers)

    def pass_on(self, request_id: str | None, traceparent: str | None) -> None:
        """Carry the caller's request id and trace to the next service, in place of what `headers` had."""
        for name, value in (("X-Request-ID", request_id), ("traceparent", traceparent)):
            if value:
                self._replace(name, value)

    def authorize(self, token: str | None) -> None:
        if token:
            self._replace("Authorization", f"Bearer {token}")

    def _replace(self, name: str, value: str) -> None:
        for old in [each for each in self.headers if each.lower() == name.lower()]:
            del self.headers[old]
        self.headers[name] = value


def target(path: str, query: Query | None) -> str:
    """Path and query as they are sent. Raises ValueError for a path that is none."""
    if not _PATH.fullmatch(path):
        raise ValueError(f"no path, or not percent-encoded: {path[:80]!r}")
    if not query:
        return path
    return f"{path}{'&' if '?' in path else '?'}{urlencode(query, doseq=True)}"
