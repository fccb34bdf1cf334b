"""The way of a request: who it is for, may it pass, who answers, and what is said when nobody can."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from socket import socket
from typing import Any, Protocol

import structlog

from discovery.calls.guard import FAILED_STATUSES
from discovery.errors import CallError
from gateway.disconnects import Departures
from gateway.errors import ClientGone, Overloaded, Refused, RouteUnknown
from gateway.fallbacks import Fallbacks
from gateway.limits.places import NO_PLACE, Place, Places, source
from gateway.limits.ratelimit import EXEMPT_SCOPE
from gateway.metrics import GatewayMetrics
from gateway.model import Answer, Headers, Incoming, is_openai
from gateway.problems import Problems, phrase
from gateway.proxy import Forward
from gateway.request import Body, Reader
from services.kit.web.context import Caller, current

# nginx's number for it; goes into logs and metrics, and to nobody.
CLIENT_GONE = 499

log = structlog.get_logger(__name__)


class Limiting(Protocol):
    """`gateway.limits.ratelimit`."""

    def check(self, incoming: Incoming) -> Headers: ...


class Composed(Protocol):
    """One composition of `gateway.compose`."""

    def answer(self, incoming: Incoming) -> Answer: ...


class Composing(Protocol):
    """`gateway.compose`."""

    def find(self, incoming: Incoming) -> Composed | None: ...


class Caching(Protocol):
    """`gateway.cache`."""

    def serve(self, incoming: Incoming, load: Callable[[Mapping[str, str]], Answer]) -> Answer: ...


class Pipeline:
    """A `Front` of the kit: plain WSGI. `own` tells which paths are Flask's."""

    def __init__(
        self,
        *,
        reader: Reader,
        forward: Forward,
        fallbacks: Fallbacks,
        problems: Problems,
        metrics: GatewayMetrics,
        departures: Departures,
        own: Callable[[str], bool],
        open_places: Places,
        limits: Limiting,
        compositions: Composing,
        cache: Caching,
    ) -> None:
        self._reader = reader
        self._forward = forward
        self._fallbacks = fallbacks
        self.problems = problems
        self.metrics = metrics
        self.departures = departures
        self._own = own
        self._open_places = open_places
        self._limits = limits
        self._compositions = compositions
        self._cache = cache

    def takes(self, environ: dict[str, Any]) -> bool:
        return not self._own(environ["PATH_INFO"])

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        caller, opened = current(), ExitStack()
        try:
            answer = self._answer(environ, caller, opened)
        except ClientGone:
            self.metrics.clients_gone.inc()
            answer = Answer(CLIENT_GONE)
        except BaseException:
            opened.close()
            raise
        self.metrics.answered(answer.source)
        try:
            start_response(f"{answer.status} {phrase(answer.status)}", answer.headers)
        except Exception:
            answer.close()
            opened.close()
            raise
        if isinstance(answer.body, bytes):
            opened.close()
            return (answer.body,)
        opened.callback(answer.close)
        return Passage(
            answer.body,
            self,
            environ.get("gunicorn.socket"),
            opened,
            openai=_events_of_openai(environ, answer),
        )

    def _answer(self, environ: dict[str, Any], caller: Caller, opened: ExitStack) -> Answer:
        """The answer; `opened` gets what is to be left when all of it is over."""
        try:
            incoming = self._reader.read(environ, caller)
        except Exception as error:
            return self._refusal(environ, caller, error)
        # A label must come from the catalog, not from a header.
        if incoming.route is not None and incoming.route.paths:
            caller.route = incoming.service
        limits: Headers = []
        try:
            limits = self._limits.check(incoming)
            opened.callback(self._place(incoming).leave)
            answer = self._find(incoming)
        except Exception as error:
            answer = self.problems.of(incoming, error)
        finally:
            if isinstance(incoming.body, Body):
                incoming.body.close()
        if limits:
            answer.headers = [*answer.headers, *limits]
        return answer

    def _place(self, incoming: Incoming) -> Place:
        """Of those that one who asks has for open requests. Raises Refused."""
        identity = incoming.identify()
        if identity is None:
            place = self._open_places.take(source(incoming.client))
        elif EXEMPT_SCOPE in identity.scopes:
            place = NO_PLACE
        else:
            # No address has a blank.
            place = self._open_places.take(f"subject {identity.subject}")
        if place is None:
            raise Refused(429, "Too many of your requests are open.", headers=[("Retry-After", "1")])
        return place

    def _refusal(self, environ: dict[str, Any], caller: Caller, error: Exception) -> Answer:
        path = environ["PATH_INFO"]
        return self.problems.answer(
            error,
            path=path,
            request_id=caller.request_id,
            service=getattr(error, "service", ""),
            openai=is_openai(path),
        )

    def _find(self, incoming: Incoming) -> Answer:
        """Who answers: a composition, the cache, the service, or what is left of them."""
        if incoming.route is None:
            composition = self._compositions.find(incoming)
            if composition is None:
                raise RouteUnknown("", "Nobody holds this path.")
            return self._watched(composition, incoming)
        try:
            answer = self._cache.serve(incoming, lambda extra: self._forward(incoming, extra))
        except (CallError, Overloaded) as error:
            return self._fallbacks.of_error(incoming, error)
        if answer.status in FAILED_STATUSES and incoming.reads and answer.source != "gateway":
            return self._fallbacks.of_answer(incoming, answer)
        return answer

    def _watched(self, composition: Composed, incoming: Incoming) -> Answer:
        if incoming.connection is None:
            return composition.answer(incoming)
        wait = self.departures.begin(incoming.connection)
        try:
            return composition.answer(incoming)
        finally:
            self.departures.end(wait)


class Passage:
    """A body on its way through.

    What is lost on the way breaks the connection, for a cut answer must not look whole; in a stream of OpenAI's events it is told
    by a last event, where a client that finds no `[DONE]` would raise nothing.
    """

    __slots__ = ("_chunks", "_connection", "_openai", "_opened", "_pipeline")

    def __init__(
        self,
        body: Iterable[bytes],
        pipeline: Pipeline,
        connection: socket | None,
        opened: ExitStack,
        *,
        openai: bool,
    ) -> None:
        self._opened = opened
        self._chunks: Iterator[bytes] = iter(body)
        self._pipeline = pipeline
        self._connection = connection
        self._openai = openai

    def __iter__(self) -> Passage:
        return self

    def __next__(self) -> bytes:
        if self._connection is None:
            return self._next()
        departures = self._pipeline.departures
        wait = departures.begin(self._connection)
        try:
            return self._next()
        except ClientGone:
            self._pipeline.metrics.clients_gone.inc()
            raise ConnectionResetError(errno.ECONNRESET, "the client has left") from None
        finally:
            departures.end(wait)

    def _next(self) -> bytes:
        try:
            return next(self._chunks)
        except CallError as error:
            log.warning("answer cut short", upstream=error.service, error=type(error).__name__)
            if not self._openai:
                raise ConnectionResetError(errno.ECONNRESET, "the answer was cut short") from error
            self._chunks = iter(())
            return b"\n\ndata: " + self._pipeline.problems.openai(error) + b"\n\n"

    def close(self) -> None:
        self._opened.close()


def _events_of_openai(environ: dict[str, Any], answer: Answer) -> bool:
    return is_openai(environ["PATH_INFO"]) and (answer.header("content-type") or "").startswith(
        "text/event-stream"
    )
