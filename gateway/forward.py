"""Passing a request on to an instance of its service, and the answer back, both as they come."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import discovery
from discovery.model import Route
from gateway.calls import Calls
from gateway.departures import Departures
from gateway.errors import Refused, RouteUnknown
from gateway.model import Answer, Headers, Incoming
from gateway.routes import holds, is_gateway

# What services keep to themselves, whoever asks.
INNER = ("/internal", "/metrics", "/health")
NOTHING: Mapping[str, str] = MappingProxyType({})
# An answer of at most this length is read at once.
SMALL_BYTES = 64 * 1024
# RFC 9110, section 7.6.1, and what this server says for itself: its own date and ids.
DROPPED = frozenset(
    {
        "connection",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
        "x-served-by",
        "x-served-lane",
    }
)


class Forward:
    """Sends requests on through `calls`. Thread-safe."""

    def __init__(self, calls: Calls, departures: Departures) -> None:
        self._calls = calls
        self._departures = departures

    def __call__(self, incoming: Incoming, extra: Mapping[str, str] = NOTHING) -> Answer:
        """The service's answer, whatever its status. `extra` headers replace the request's, an empty value takes
        one away: a cache's conditions.

        Raises CallError, GatewayError; ClientGone.
        """
        if incoming.connection is None:
            return self._send(incoming, extra)
        wait = self._departures.begin(incoming.connection)
        try:
            return self._send(incoming, extra)
        finally:
            self._departures.end(wait)

    def _send(self, incoming: Incoming, extra: Mapping[str, str]) -> Answer:
        route = incoming.route
        if route is None or is_gateway(incoming.service):
            raise RouteUnknown(incoming.service, "Nobody holds this path.")
        if route.protocol != "http":
            raise Refused(502, "This service speaks HTTP/2 only.", service=incoming.service)
        left_s = incoming.deadline - time.monotonic()
        if left_s <= 0:
            raise Refused(504, "The time for this request is over.", service=incoming.service)
        response = self._calls.send(
            incoming,
            incoming.method,
            incoming.service,
            _target(incoming, route),
            headers=_with(incoming.headers, extra) if extra else incoming.headers,
            body=incoming.body,
            deadline_s=left_s,
            stream=True,
            source_key=incoming.path if route.balance == "uri" else incoming.client,
        )
        return answer_of(response, incoming.method)


def _with(headers: Mapping[str, str], extra: Mapping[str, str]) -> Mapping[str, str]:
    return {name: value for name, value in {**headers, **extra}.items() if value or name not in extra}


def _target(incoming: Incoming, route: Route) -> str:
    """What the instance is asked for: without the prefix where the route strips it. Raises RouteUnknown."""
    path = incoming.path
    if route.strip:
        prefix = max((each for each in route.paths if holds(each, path)), key=len, default="")
        path = path[len(prefix) :] or "/"
    if any(holds(each, path) for each in INNER):
        raise RouteUnknown(incoming.service, "Nobody outside may ask for this.")
    return f"{path}?{incoming.query}" if incoming.query else path


def answer_of(response: discovery.Response, method: str) -> Answer:
    """An instance's answer as ours. Short bodies are read, long ones and those of unknown length are passed on."""
    headers, length = _headers(response.headers)
    body: bytes | Iterable[bytes]
    if method == "HEAD" or response.status in (204, 304) or (length is not None and length <= SMALL_BYTES):
        body = response.data
    else:
        body = Relay(response)
    return Answer(response.status, headers, body, source=response.instance.id, attempts=response.attempts)


class Relay:
    """The body of an instance's answer as it comes. Closed before its end, it closes the connection to the instance."""

    __slots__ = ("_chunks", "_response")

    def __init__(self, response: discovery.Response) -> None:
        self._response = response
        self._chunks = response.iter_bytes()

    def __iter__(self) -> Relay:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self._response.close()


def _headers(given: discovery.Headers) -> tuple[Headers, int | None]:
    """What is passed back, and the declared length. Repeated headers stay apart."""
    kept: Headers = []
    named: frozenset[str] = frozenset()
    length = None
    for name, value in given.items():
        lower = name.lower()
        if lower == "connection":
            named = frozenset(each.strip().lower() for each in value.split(","))
        elif lower not in DROPPED:
            kept.append((name, value))
            if lower == "content-length" and value.isascii() and value.isdigit():
                length = int(value)
    if named - {"close", "keep-alive", ""}:
        kept = [pair for pair in kept if pair[0].lower() not in named]
    return kept, length
