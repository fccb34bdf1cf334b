"""From a WSGI environment to an `Incoming`: headers, path, deadline, body, and whose it is."""

from __future__ import annotations

import re
import time
from typing import Any

from discovery.calls.request import DROPPED_HEADERS
from discovery.model import Route
from discovery.resilience.retry import may_run_twice
from gateway.body import TOO_LARGE, Body, LiveBody
from gateway.errors import Refused, RouteUnknown
from gateway.limits.loadshed import Places, source
from gateway.model import Incoming
from gateway.routes import Routes, is_gateway
from gateway.settings import GatewaySettings
from services.kit.auth.jwks import KeysUnavailable
from services.kit.auth.verifier import BEARER, Identity, InvalidToken
from services.kit.container import Kit
from services.kit.web import body as limits
from services.kit.web.context import Caller

# What is not longer is held while it is sent, so that it can be sent again.
REPLAY_BYTES = 256 * 1024
# The time for what the gateway answers by itself.
OWN_DEADLINE_S = 10.0
# What a second try has beyond the route's own time.
AGAIN_S = 1.0
# They are about the way itself, as at the edge.
_REFUSED_METHODS = frozenset({"CONNECT", "TRACE"})
PASSED_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_LONGEST_ADDRESS = 45
# Goes with all that a gateway asks for, and none takes what bears it: a service may be registered at a gateway's own address.
# Clients cannot send it, for the edge takes off what begins with X-Edge-.
VIA = "x-edge-via"
VIA_KEY = "HTTP_X_EDGE_VIA"
# The same that the edge denies: what an instance might read as another path than we do.
_TRICK = re.compile(
    r"//|/\.\.?(?:/|$)|[\\;#]|[^!-~]|%(?:00|0a|0d|2e|2f|5c|25|(?![0-9a-f]{2}))", re.IGNORECASE
)
# Hop by hop, or ours to say.
_DROPPED = frozenset(
    "HTTP_" + name.upper().replace("-", "_") for name in (*DROPPED_HEADERS, "x-forwarded-prefix")
)


class Reader:
    """Makes `Incoming`s for one group."""

    def __init__(self, kit: Kit, settings: GatewaySettings, routes: Routes) -> None:
        self._kit = kit
        self._settings = settings
        self._routes = routes
        # Each body that is waited for holds a connection, and few bytes are enough to make one wait.
        self._arriving = Places(settings.gateway_bodies, settings.gateway_bodies_per_client)

    def read(self, environ: dict[str, Any], caller: Caller) -> Incoming:
        """The request. Raises Refused, RouteUnknown."""
        method = environ["REQUEST_METHOD"]
        if method in _REFUSED_METHODS:
            raise Refused(405, "This method is not passed on.", headers=[("Allow", PASSED_METHODS)])
        if VIA_KEY in environ:
            raise Refused(508, "This request has been through a gateway.")
        path, _, query = environ["RAW_URI"].partition("?")
        if path[:1] != "/":
            path = _after_authority(path)
        if _TRICK.search(path):
            raise Refused(400, "The path holds what could be read in two ways.")
        route = self._route(path, environ.get("HTTP_X_EDGE_ROUTE"))
        now = time.monotonic()
        if caller.deadline <= now:
            raise Refused(504, "The time for this request is over.", service=route.service if route else "")
        headers = _headers(environ, caller, self._kit.name)
        timeout_s = float(route.timeout_s) if route is not None else OWN_DEADLINE_S
        again_s = AGAIN_S if route is not None and may_run_twice(method, headers) else 0.0
        deadline = min(caller.deadline, now + timeout_s + again_s)
        credentials = Credentials(self._kit, caller, environ.get("HTTP_AUTHORIZATION"))
        client = _client(environ)
        return Incoming(
            method=method,
            path=path,
            query=query,
            headers=headers,
            service=route.service if route is not None else self._kit.name,
            domain=self._settings.gateway_domain,
            client=client,
            request_id=caller.request_id,
            traceparent=caller.traceparent,
            deadline=deadline,
            timeout_s=timeout_s,
            body=self._body(environ, deadline, client, route),
            identify=credentials.identify,
            unchecked=lambda: credentials.keys_away,
            route=route,
            connection=environ.get("gunicorn.socket"),
            host=environ.get("HTTP_HOST", ""),
        )

    def _route(self, path: str, named: str | None) -> Route | None:
        """The route to forward on, None where the gateway has to answer by itself."""
        route = self._routes.find(path, named)
        if route is None or is_gateway(route.service):
            return None
        if route.domain != self._settings.gateway_domain:
            raise RouteUnknown(route.service, "Another gateway answers for this path.")
        return route

    def _body(
        self, environ: dict[str, Any], until: float, client: str, route: Route | None
    ) -> bytes | Body | LiveBody | None:
        """Short bodies whole, so that they can be sent again; others as they come, by the deadline at the latest. On a route that
        asks for it all as they come, for as long as they do."""
        length = limits.declared_length(environ)
        if not length and not environ.get("HTTP_TRANSFER_ENCODING"):
            return None
        most_bytes = self._settings.max_body_bytes
        if route is not None and route.stream and (length or 0) <= most_bytes:
            return LiveBody(environ, route.idle_s, most_bytes)
        if not limits.limit(environ, most_bytes):
            raise Refused(413, TOO_LARGE)
        place = self._arriving.take(source(client))
        try:
            if place is None:
                raise Refused(503, "Too many bodies are waited for.", headers=[("Retry-After", "1")])
            body = Body(environ["wsgi.input"], length, self._settings.body_timeout_s, until, place)
            return body.begin(REPLAY_BYTES)
        except BaseException:
            if place is not None:
                place.leave()
            # The server would wait for the rest, to be able to keep the connection.
            limits.stop_reading(environ.get("gunicorn.socket"))
            raise


class Credentials:
    """What the bearer token of a request proves, verified at first use."""

    __slots__ = ("_caller", "_given", "_identity", "_kit", "keys_away")

    def __init__(self, kit: Kit, caller: Caller, given: str | None) -> None:
        self._kit = kit
        self._caller = caller
        self._given = given
        self._identity: Identity | None = None
        self.keys_away = False

    def identify(self) -> Identity | None:
        """None without a token that proves something now."""
        given, self._given = self._given, None
        match = BEARER.fullmatch(given) if given else None
        if match is not None:
            try:
                self._identity = self._kit.tokens.verify(match[1], self._caller.remaining_s())
            except InvalidToken:
                return None
            except KeysUnavailable:
                self.keys_away = True
                return None
            self._caller.subject, self._caller.scopes = self._identity.subject, self._identity.scopes
        return self._identity


def _after_authority(uri: str) -> str:
    """The path of an absolute URI. Raises Refused."""
    _, scheme, rest = uri.partition("://")
    if not scheme:
        raise Refused(400, "The request names no path.")
    return "/" + rest.partition("/")[2]


def _client(environ: dict[str, Any]) -> str:
    """The address that the edge saw, which it writes last."""
    seen: str = environ.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()
    peer: str = environ["REMOTE_ADDR"]
    return seen if 0 < len(seen) <= _LONGEST_ADDRESS else peer


def _headers(environ: dict[str, Any], caller: Caller, gateway: str) -> dict[str, str]:
    headers = {
        key[5:].replace("_", "-").lower(): value
        for key, value in environ.items()
        if key[:5] == "HTTP_" and key not in _DROPPED
    }
    for key, name in (("CONTENT_TYPE", "content-type"), ("CONTENT_LENGTH", "content-length")):
        value = environ.get(key)
        if value:
            headers[name] = value
    connection = environ.get("HTTP_CONNECTION")
    if connection and connection.lower() not in ("keep-alive", "close"):
        for each in connection.split(","):
            headers.pop(each.strip().lower(), None)
    headers["x-request-id"] = caller.request_id
    headers["traceparent"] = caller.traceparent
    headers[VIA] = gateway
    return headers
