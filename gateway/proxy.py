"""Passing a request on to an instance of its service, and the answer back, both as they come."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import discovery
from discovery.calls.client import Relay
from discovery.model import Route
from gateway.calls import Calls
from gateway.disconnects import Departures
from gateway.errors import Refused, RouteUnknown
from gateway.model import Answer, Headers, Incoming
from gateway.routes import holds, is_gateway

# What services keep to themselves, whoever asks.
INNER = ("/internal", "/metrics", "/health")
NOTHING: Mapping[str, str] = MappingProxyType({})
# An answer of at most this length is waited for before anything of it is passed on: so it may be asked for again.
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
        prefix, path = _split(incoming, route)
        if prefix:
            extra = {**extra, "x-forwarded-prefix": prefix}
        response = self._calls.send(
            incoming,
            incoming.method,
            incoming.service,
            f"{path}?{incoming.query}" if incoming.query else path,
            headers=_with(incoming.headers, extra) if extra else incoming.headers,
            body=incoming.body,
            deadline_s=left_s,
            stream=True,
            relay=Relay(incoming.timeout_s, float(route.idle_s), SMALL_BYTES, incoming.host),
            source_key=incoming.path if route.balance == "uri" else incoming.client,
        )
        return answer_of(response)


def _with(headers: Mapping[str, str], extra: Mapping[str, str]) -> Mapping[str, str]:
    return {name: value for name, value in {**headers, **extra}.items() if value or name not in extra}


def _split(incoming: Incoming, route: Route) -> tuple[str, str]:
    """The prefix that the route strips (empty: none), and the path that the instance is asked for. Raises RouteUnknown."""
    prefix, path = "", incoming.path
    if route.strip:
        prefix = max((each for each in route.paths if holds(each, path)), key=len, default="")
        path = path[len(prefix) :] or "/"
    if any(holds(each, path) for each in INNER):
        raise RouteUnknown(incoming.service, "Nobody outside may ask for this.")
    return prefix, path


def answer_of(response: discovery.Response) -> Answer:
    """An instance's answer as ours. A body that is here is taken whole, another is passed on."""
    headers = _headers(response.headers)
    body: bytes | Iterable[bytes] = response.data if response.complete else Passing(response)
    return Answer(response.status, headers, body, source=response.instance.id, attempts=response.attempts)


class Passing:
    """The body of an instance's answer as it comes. Closed before its end, it closes the connection to the instance."""

    __slots__ = ("_chunks", "_response")

    def __init__(self, response: discovery.Response) -> None:
        self._response = response
        self._chunks = response.iter_bytes()

    def __iter__(self) -> Passing:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self._response.close()


def _headers(given: discovery.Headers) -> Headers:
    """What is passed back. Repeated headers stay apart."""
    kept: Headers = []
    named: frozenset[str] = frozenset()
    for name, value in given.items():
        lower = name.lower()
        if lower == "connection":
            named = frozenset(each.strip().lower() for each in value.split(","))
        elif lower not in DROPPED:
            kept.append((name, value))
    if named - {"close", "keep-alive", ""}:
        kept = [pair for pair in kept if pair[0].lower() not in named]
    return kept
