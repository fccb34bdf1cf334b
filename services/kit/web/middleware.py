"""The outermost layer of a service: ids, deadline, body limit, metrics and the access line of every request.

It is plain WSGI around the Flask application, so that it also sees what Flask answers by itself, and streams to
their last byte.
"""

from __future__ import annotations

import ipaddress
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, Protocol

from werkzeug.middleware.proxy_fix import ProxyFix

from services.kit.container import Kit
from services.kit.telemetry import logs
from services.kit.web import body
from services.kit.web.api import ServiceApp
from services.kit.web.context import Caller, child_of, request_id, set_current

QUIET_ROUTES = frozenset({"/health/live", "/health/ready", "/metrics"})
# Set for Flask's before_request hook, which answers in the problem format.
REFUSED = "kit.refused"

MAX_LOGGED_PATH = 200

StartResponse = Callable[..., Any]


class Front(Protocol):
    """Plain WSGI in front of Flask, for what passes requests on: it gets their bodies unread and without a limit, and
    answers for both. It finds the request in `current()`, and may name its route there. Must not raise.
    """

    def takes(self, environ: dict[str, Any]) -> bool:
        """Whether the request is for it; the others go to Flask."""
        ...

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]: ...


class Observer:
    """WSGI middleware of one service. What a service sets as `front` is asked before Flask."""

    front: Front | None = None

    def __init__(self, inner: Callable[..., Iterable[bytes]], app: ServiceApp, kit: Kit) -> None:
        self._inner = inner
        self._app = app
        self._metrics = kit.metrics
        self._deadline_s = kit.settings.deadline_s
        self._arrivals = body.Arrivals(
            kit.settings.threads_to_wait() or body.GREENLETS, kit.settings.body_timeout_s
        )

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        started = time.perf_counter()
        caller = Caller(
            request_id(environ.get("HTTP_X_REQUEST_ID")),
            child_of(environ.get("HTTP_TRACEPARENT")),
            time.monotonic() + deadline_s(environ.get("HTTP_X_DEADLINE_MS"), self._deadline_s),
        )
        set_current(caller)
        answer = _Answer(self, caller, environ["REQUEST_METHOD"], environ.get("PATH_INFO", ""), started)
        inner = self._inner
        if self.front is not None and self.front.takes(environ):
            inner = self.front
        elif caller.deadline <= time.monotonic():
            environ[REFUSED] = 504
        elif not body.limit(environ, self._app.config["MAX_BODY_BYTES"]):
            environ[REFUSED] = 413
        else:
            environ[REFUSED] = self._arrivals.await_body(environ)
        self._metrics.in_progress.inc()

        def respond(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            answer.status = int(status[:3])
            answer.streamed = not any(name.lower() == "content-length" for name, _ in headers)
            headers.append(("X-Request-ID", caller.request_id))
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        try:
            answer.body = inner(environ, respond)
        except BaseException:
            answer.close()
            raise
        return answer

    def finish(self, answer: _Answer) -> None:
        """Count and log an answered request."""
        duration_s = time.perf_counter() - answer.started
        self._metrics.in_progress.dec()
        caller = answer.caller
        self._metrics.observe(answer.method, caller.route, answer.status, duration_s)
        logs.request_lines.write(
            "debug" if caller.route in QUIET_ROUTES else "info",
            caller,
            {
                "method": answer.method,
                "path": answer.path[:MAX_LOGGED_PATH],
                "route": caller.route,
                "status": answer.status,
                "duration_s": round(duration_s, 6),
                "subject": caller.subject,
            },
        )
        set_current(None)


class _Answer:
    """The body of an answer; finishes the request when the server closes it."""

    __slots__ = ("body", "caller", "method", "observer", "path", "started", "status", "streamed")

    def __init__(self, observer: Observer, caller: Caller, method: str, path: str, started: float) -> None:
        self.observer: Observer | None = observer
        self.caller = caller
        self.method = method
        self.path = path
        self.started = started
        self.status = 500
        self.streamed = False
        self.body: Iterable[bytes] = ()

    def __iter__(self) -> Iterator[bytes]:
        # gunicorn sends the head with the first piece, be it empty: a quiet stream would else look like no answer at all.
        return itertools.chain((b"",), self.body) if self.streamed else iter(self.body)

    def close(self) -> None:
        observer, self.observer = self.observer, None
        if observer is None:
            return
        try:
            close = getattr(self.body, "close", None)
            if close is not None:
                close()
        finally:
            observer.finish(self)


def deadline_s(given_ms: str | None, most_s: float) -> float:
    """Seconds that a request has: what its sender gives, at most what the service allows; an invalid value is ignored."""
    if given_ms and len(given_ms) <= 9 and given_ms.isascii() and given_ms.isdigit():
        return min(int(given_ms) / 1000, most_s)
    return most_s


class Forwarded:
    """WSGI middleware: takes `X-Forwarded-*` from clients in one of `networks`, and from no other.

    So `request.scheme`, `.host` and `.remote_addr` are the client's, and a redirect or `url_for(…, _external=True)` leads back
    to where the client is. A gateway passes the edge's words on unchanged: one value of each counts, in both lanes.
    """

    def __init__(self, inner: Callable[..., Iterable[bytes]], networks: str) -> None:
        self._inner = inner
        self._fixed = ProxyFix(inner, x_for=1, x_proto=1, x_host=1, x_prefix=1)
        self._networks = [ipaddress.ip_network(part.strip()) for part in networks.split(",")]
        self._believed = lru_cache(maxsize=256)(self._contains)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        believed = self._believed(environ.get("REMOTE_ADDR", ""))
        return (self._fixed if believed else self._inner)(environ, start_response)

    def _contains(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)
