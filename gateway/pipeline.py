"""The way of a request: who it is for, may it pass, who answers, and what is said when nobody can."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import structlog

from discovery.client import FAILED_STATUSES
from discovery.errors import CallError
from gateway.errors import GatewayError, RouteUnknown
from gateway.fallbacks import Fallbacks
from gateway.forward import Forward
from gateway.incoming import Reader
from gateway.metrics import GatewayMetrics
from gateway.model import Answer, Headers, Incoming
from gateway.problems import Problems, phrase
from services.kit.context import Caller, current

log = structlog.get_logger(__name__)


class Limiting(Protocol):
    """`gateway.limits`."""

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
        own: Callable[[str], bool],
        limits: Limiting | None = None,
        compositions: Composing | None = None,
        cache: Caching | None = None,
    ) -> None:
        self._reader = reader
        self._forward = forward
        self._fallbacks = fallbacks
        self._problems = problems
        self._metrics = metrics
        self._own = own
        self._limits = limits
        self._compositions = compositions
        self._cache = cache

    def takes(self, environ: dict[str, Any]) -> bool:
        return not self._own(environ["PATH_INFO"])

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = self._answer(environ, current())
        start_response(f"{answer.status} {phrase(answer.status)}", answer.headers)
        if isinstance(answer.body, bytes):
            return (answer.body,)
        return Passage(answer.body)

    def _answer(self, environ: dict[str, Any], caller: Caller) -> Answer:
        try:
            incoming = self._reader.read(environ, caller)
        except Exception as error:
            return self._refusal(environ, caller, error)
        if incoming.route is not None:
            caller.route = incoming.service
        try:
            headers = self._limits.check(incoming) if self._limits is not None else []
            answer = self._find(incoming)
        except Exception as error:
            return self._problems.of(incoming, error)
        answer.headers.extend(headers)
        return answer

    def _refusal(self, environ: dict[str, Any], caller: Caller, error: Exception) -> Answer:
        path = environ["PATH_INFO"]
        return self._problems.answer(
            error,
            path=path,
            request_id=caller.request_id,
            service=getattr(error, "service", ""),
            openai=path.startswith(("/v1/", "/chat/")),
        )

    def _find(self, incoming: Incoming) -> Answer:
        """Who answers: a composition, the cache, the service, or what is left of them."""
        if incoming.route is None:
            composition = self._compositions.find(incoming) if self._compositions is not None else None
            if composition is None:
                raise RouteUnknown("", "Nobody holds this path.")
            return composition.answer(incoming)
        try:
            if self._cache is not None:
                answer = self._cache.serve(incoming, lambda extra: self._forward(incoming, extra))
            else:
                answer = self._forward(incoming)
        except (CallError, GatewayError) as error:
            return self._fallbacks.of_error(incoming, error)
        if answer.status in FAILED_STATUSES and incoming.reads and answer.source != "gateway":
            return self._fallbacks.of_answer(incoming, answer)
        return answer


class Passage:
    """A body on its way through. What is lost on the way breaks the connection: a cut answer must not look whole."""

    __slots__ = ("_body", "_chunks")

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        self._chunks: Iterator[bytes] = iter(body)

    def __iter__(self) -> Passage:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except CallError as error:
            log.warning("answer cut short", upstream=error.service, error=type(error).__name__)
            raise ConnectionResetError(errno.ECONNRESET, "the upstream's answer was cut short") from error

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()
