"""The way of a request: which service it is for, whether it may pass, what answers it, and the error when nothing can."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from discovery.calls.guard import FAILED_STATUSES
from discovery.errors import CallError
from discovery.http.body import BodyFailed
from gateway.body import Body, LiveBody
from gateway.cache import AnswerCache
from gateway.compose import Compositions
from gateway.disconnects import Departures
from gateway.errors import ClientGone, Overloaded, Refused, RouteUnknown
from gateway.limits.loadshed import Place, Places, source
from gateway.limits.ratelimit import EXEMPT_SCOPE, Limits
from gateway.metrics import GatewayMetrics
from gateway.model import Answer, Headers, Incoming, is_openai
from gateway.problems import Fallbacks, Problems
from gateway.proxy import Forward
from gateway.request import Reader
from services.kit.web.context import current
from services.kit.web.problems import phrase

# nginx's status for it: for logs and metrics, sent to no client.
CLIENT_GONE = 499
# Everything under it is Flask's, whatever services hold.
OWN_PREFIX = "/edge/"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A `Front` of the kit: plain WSGI. `own_paths` are Flask's."""

    reader: Reader
    limits: Limits
    open_places: Places
    compositions: Compositions
    cache: AnswerCache
    forward: Forward
    problems: Problems
    metrics: GatewayMetrics
    departures: Departures
    own_paths: frozenset[str]

    def takes(self, environ: dict[str, Any]) -> bool:
        path = environ["PATH_INFO"]
        return path not in self.own_paths and not path.startswith(OWN_PREFIX)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        passage = Passage(self, environ)
        try:
            answer = passage.answer = self._answer(environ, passage)
            self.metrics.answered(answer.source)
            start_response(f"{answer.status} {phrase(answer.status)}", answer.headers)
        except BaseException:
            passage.close()
            raise
        if isinstance(answer.body, bytes):
            passage.close()
            return (answer.body,)
        return passage

    def _answer(self, environ: dict[str, Any], passage: Passage) -> Answer:
        caller = current()
        incoming: Incoming | None = None
        limits: Headers = []
        try:
            incoming = self.reader.read(environ, caller)
            # A label must come from the catalog, not from a header.
            if incoming.route is not None and incoming.route.paths:
                caller.route = incoming.service
            if isinstance(incoming.body, LiveBody):
                passage.body = incoming.body
            limits = self.limits.check(incoming)
            passage.place = self._place(incoming)
            answer = self._find(incoming)
        except ClientGone:
            self.metrics.clients_gone.inc()
            return Answer(CLIENT_GONE)
        except Exception as error:
            if incoming is not None:
                answer = self.problems.of(incoming, error)
            else:
                path, service = environ["PATH_INFO"], getattr(error, "service", "")
                answer = self.problems.answer(error, path=path, request_id=caller.request_id, service=service)
        finally:
            if incoming is not None and isinstance(incoming.body, Body):
                incoming.body.close()
        if limits:
            answer.headers = [*answer.headers, *limits]
        return answer

    def _place(self, incoming: Incoming) -> Place | None:
        """One of the places for open requests that its caller has; services need none. Raises Refused."""
        identity = incoming.identify()
        if identity is not None and EXEMPT_SCOPE in identity.scopes:
            return None
        # An address holds no space.
        holder = f"subject {identity.subject}" if identity is not None else source(incoming.client)
        place = self.open_places.take(holder)
        if place is None:
            raise Refused(429, "Too many of your requests are open.", headers=[("Retry-After", "1")])
        return place

    def _find(self, incoming: Incoming) -> Answer:
        """From a composition, the cache, the service, or what is left of them."""
        if incoming.route is None:
            composition = self.compositions.find(incoming)
            if composition is None:
                raise RouteUnknown("", "No service holds this path.")
            with self.departures.watch(incoming.connection):
                return composition(incoming)
        fallbacks = Fallbacks(self.problems, self.cache.last_good)
        try:
            answer = self.cache.serve(incoming, partial(self.forward, incoming))
        except (CallError, Overloaded) as error:
            return fallbacks.of_error(incoming, error)
        if answer.status in FAILED_STATUSES and incoming.reads and answer.source != "gateway":
            return fallbacks.of_answer(incoming, answer)
        return answer


class Passage:
    """An answer on its way out, and the one place that knows when it is over.

    What is lost on the way breaks the connection, for a cut answer must not look whole; in a stream of OpenAI's events it is said
    by a last event, where a client that finds no `[DONE]` would raise nothing.
    """

    __slots__ = ("_chunks", "_connection", "_path", "_pipeline", "answer", "body", "place")

    def __init__(self, pipeline: Pipeline, environ: dict[str, Any]) -> None:
        self._pipeline = pipeline
        self._connection = environ.get("gunicorn.socket")
        self._path = environ["PATH_INFO"]
        self._chunks: Iterator[bytes] | None = None
        self.answer: Answer | None = None
        self.place: Place | None = None
        self.body: LiveBody | None = None

    def __iter__(self) -> Passage:
        return self

    def __next__(self) -> bytes:
        assert self.answer is not None
        if self._chunks is None:
            body = self.answer.body
            self._chunks = iter((body,) if isinstance(body, bytes) else body)
        try:
            with self._pipeline.departures.watch(self._connection):
                return next(self._chunks)
        except ClientGone:
            self._pipeline.metrics.clients_gone.inc()
            raise ConnectionResetError(errno.ECONNRESET, "the client has left") from None
        except BodyFailed:
            raise ConnectionResetError(errno.ECONNRESET, "the request's body was cut short") from None
        except CallError as error:
            log.warning("answer cut short", upstream=error.service, error=type(error).__name__)
            kind = self.answer.header("content-type") or ""
            if not (is_openai(self._path) and kind.startswith("text/event-stream")):
                raise ConnectionResetError(errno.ECONNRESET, "the answer was cut short") from error
            self._chunks = iter(())
            return b"\n\ndata: " + self._pipeline.problems.openai(error) + b"\n\n"

    def close(self) -> None:
        """Leave what is unread of the answer and of the request's body, and the place among open requests."""
        answer, place, body = self.answer, self.place, self.body
        self.answer = self.place = self.body = None
        try:
            if answer is not None:
                answer.close()
        finally:
            if place is not None:
                place.leave()
            if body is not None:
                body.close()
