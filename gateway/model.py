"""The nouns of the gateway: a request as it came in, and an answer as it goes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from socket import socket
from typing import Self

from discovery.model import Domain, Route
from gateway.errors import Refused
from services.kit.auth.verifier import Identity

Headers = list[tuple[str, str]]


def first(headers: Headers, name: str) -> str | None:
    """The first value of a header; `name` in lower case."""
    return next((value for key, value in headers if key.lower() == name), None)


@dataclass(slots=True)
class Incoming:
    """One request as the gateway took it.

    `path` is percent-encoded and `query` without its `?`, both as they came. `headers` have lower-case names, and no hop-by-hop
    ones among them. `service` is whose route it is; `client` the address at the edge. `deadline` is a point on the monotonic
    clock, `timeout_s` how long the route waits for the head of an answer. `body` is whole (bytes) or can be read once; None when there is none.
    `identify` verifies the bearer token at first use and remembers what it says: None without a token that proves something,
    also where `unchecked` says that there is no key to verify it with.
    `route` is None for what the gateway answers by itself (compositions). `connection` is the client's, to see it leave;
    `host` the Host that was asked for.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    service: str
    domain: Domain
    client: str
    request_id: str
    traceparent: str
    deadline: float
    timeout_s: float = 30.0
    body: bytes | Iterable[bytes] | None = None
    identify: Callable[[], Identity | None] = lambda: None
    unchecked: Callable[[], bool] = lambda: False
    route: Route | None = None
    connection: socket | None = None
    host: str = ""

    @property
    def target(self) -> str:
        """Path and query, as a request line has them."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def reads(self) -> bool:
        """Whether the method only reads (GET, HEAD): what a stored answer can stand in for."""
        return self.method in ("GET", "HEAD")

    def prove(self, service: str = "") -> Identity:
        """What the request's token says. Raises Refused: 401 without one that proves anything, 503 where none can be checked now."""
        identity = self.identify()
        if identity is not None:
            return identity
        if self.unchecked():
            raise Refused(503, "Tokens cannot be checked at the moment.", service=service)
        given = "authorization" in self.headers
        challenge = 'Bearer realm="breakwater"' + (', error="invalid_token"' if given else "")
        detail = "The token is not valid." if given else "A bearer token is needed."
        raise Refused(401, detail, service=service, headers=[("WWW-Authenticate", challenge)])


@dataclass(slots=True)
class Answer:
    """What goes back. `body` is whole (bytes), or an iterable that is read to its end or closed.

    `source` says where it came from: an instance id, `cache`, `stale` or `gateway`. `attempts` counts tries at an upstream.
    """

    status: int
    headers: Headers = field(default_factory=list)
    body: bytes | Iterable[bytes] = b""
    source: str = "gateway"
    attempts: int = 0

    def header(self, name: str) -> str | None:
        """The first value of a header; `name` in lower case."""
        return first(self.headers, name)

    def with_headers(self, *added: tuple[str, str]) -> Self:
        """The same answer with these headers in place of any of their names."""
        names = {name.lower() for name, _ in added}
        kept = [pair for pair in self.headers if pair[0].lower() not in names]
        return replace(self, headers=[*kept, *added])

    def close(self) -> None:
        """Leave what is unread of the body."""
        close = getattr(self.body, "close", None)
        if close is not None:
            close()


def is_openai(path: str) -> bool:
    """Whether the path's errors have OpenAI's shape."""
    return path.startswith(("/v1/", "/chat/")) or path in ("/v1", "/chat")
