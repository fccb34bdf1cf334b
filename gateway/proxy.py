"""Passing a request on to an instance of its service, and the answer back, both as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import discovery
from discovery.calls.client import Relay
from discovery.calls.guard import FAILED_STATUSES
from discovery.calls.request import DROPPED_HEADERS
from discovery.model import Domain, Route
from gateway.body import LiveBody
from gateway.disconnects import Departures
from gateway.errors import Overloaded, Refused, RouteUnknown
from gateway.limits.loadshed import Shed
from gateway.model import Answer, Headers, Incoming
from gateway.routes import holds, is_gateway

# What services keep to themselves, whatever the request proves.
INNER = ("/internal", "/metrics", "/health")
# An answer of at most this length is waited for before anything of it is passed on: so it may be asked for again.
SMALL_BYTES = 64 * 1024
# Hop by hop, and what this server says itself.
_DROPPED = DROPPED_HEADERS | {"date", "server", "x-request-id", "x-served-by", "x-served-lane"}


class Calls:
    """Sends requests to services by name, as far as `shed` has room for them. Thread-safe.

    `client` carries no token of the gateway's own: what a caller may not do, it may not do through us. `domain_of` says whose a
    service is: those of identity have priority when there is not room for all.
    """

    def __init__(
        self, client: discovery.ServiceClient, shed: Shed, domain_of: Callable[[str], Domain | None]
    ) -> None:
        self.client = client
        self._shed = shed
        self._domain_of = domain_of

    def send(
        self,
        incoming: Incoming | None,
        method: str,
        service: str,
        target: str,
        *,
        source_key: str | None = None,
        stream: bool = False,
        **options: Any,
    ) -> discovery.Response:
        """Call a service; `target` is path and query, `options` are those of `ServiceClient.request`. Raises CallError, Overloaded.

        A streamed answer must be read to its end or closed; until then it holds its place, that of a stream from the beginning
        where its body is one. `incoming` is whose request it is; its client is the `source_key` where there is no other.
        """
        if source_key is None and incoming is not None:
            source_key = incoming.client
        ticket = self._shed.enter(service, priority=self._domain_of(service) == "identity")
        try:
            if isinstance(options.get("body"), LiveBody):
                ticket.head(None)
            response = self.client.request(
                method, service, target, source_key=source_key, stream=stream, **options
            )
        except BaseException as error:
            gone = not isinstance(error, Exception)
            ticket.leave(None if gone or getattr(error, "neutral", False) else False)
            raise
        ok = response.status not in FAILED_STATUSES
        if not stream or response.complete:
            ticket.leave(ok)
            return response
        try:
            ticket.head(ok)
        except Overloaded:
            response.close()
            raise
        response.on_end(lambda error: ticket.leave())
        return response


class Forward:
    """Sends requests on through `calls`. Thread-safe."""

    def __init__(self, calls: Calls, departures: Departures) -> None:
        self._calls = calls
        self._departures = departures

    def __call__(self, incoming: Incoming, extra: Mapping[str, str]) -> Answer:
        """The service's answer, whatever its status. `extra` headers replace the request's, an empty value takes
        one away: a cache's conditions.

        Raises CallError, GatewayError; ClientGone.
        """
        route = incoming.route
        if route is None or is_gateway(incoming.service):
            raise RouteUnknown(incoming.service, "No service holds this path.")
        if route.protocol != "http":
            raise Refused(502, "This service speaks HTTP/2 only.", service=incoming.service)
        left_s = incoming.deadline - time.monotonic()
        if left_s <= 0:
            raise Refused(504, "The time for this request is over.", service=incoming.service)
        prefix, path = _split(incoming, route)
        if prefix:
            extra = {**extra, "x-forwarded-prefix": prefix}
        with self._departures.watch(incoming.connection):
            response = self._calls.send(
                incoming,
                incoming.method,
                incoming.service,
                f"{path}?{incoming.query}" if incoming.query else path,
                headers=_with(incoming.headers, extra) if extra else incoming.headers,
                body=incoming.body,
                deadline_s=left_s,
                stream=True,
                relay=Relay(
                    incoming.timeout_s,
                    float(route.idle_s),
                    SMALL_BYTES,
                    incoming.host,
                    both_ways=route.stream,
                ),
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
        raise RouteUnknown(incoming.service, "This path cannot be asked for from outside.")
    return prefix, path


def answer_of(response: discovery.Response) -> Answer:
    """An instance's answer as ours. A body that is here is taken whole, another is passed on."""
    headers = _headers(response.headers)
    body: bytes | Iterable[bytes] = response.data if response.complete else response
    return Answer(response.status, headers, body, source=response.instance.id, attempts=response.attempts)


def _headers(given: discovery.Headers) -> Headers:
    """What is passed back. Repeated headers stay apart."""
    dropped = _DROPPED
    named = given.get("connection")
    if named is not None and named.lower() not in ("keep-alive", "close"):
        dropped = dropped | {each.strip().lower() for each in named.split(",")}
    return [(name, value) for name, value in given.items() if name.lower() not in dropped]
