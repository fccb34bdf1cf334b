"""One part: asked for, read within its bounds, checked; or what stands in for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import gevent
import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.errors import CallError
from discovery.static_view import Reading
from discovery.transport import Response
from gateway.compose.declaration import CachePolicy, Part
from gateway.compose.jsonpart import NotUsable, member_of
from gateway.compose.result import Result, State, failed
from gateway.errors import GatewayError
from gateway.model import Answer, Incoming

log = structlog.get_logger(__name__)

MIN_LEFT_S = 0.001
# A part's own answer ends this much before the whole must be there, so that there is time for what stands in for it.
RESERVE_SHARE = 0.1
MOST_RESERVE_S = 0.15
_KEPT = (
    "cache-control",
    "vary",
    "age",
    "etag",
    "last-modified",
    "content-type",
    "retry-after",
    "www-authenticate",
)

Load = Callable[[Mapping[str, str]], Answer]


class Sending(Protocol):
    """What is needed of `gateway.calls.Calls`."""

    def send(
        self,
        incoming: Incoming | None,
        method: str,
        service: str,
        target: str,
        *,
        headers: Mapping[str, str],
        deadline_s: float,
        stream: bool = False,
        source_key: str | None = None,
    ) -> Response: ...


class PartCache(Protocol):
    """What is needed of `gateway.cache.AnswerCache`."""

    def part(self, incoming: Incoming, policy: CachePolicy, load: Load) -> Answer:
        """A stored answer of the part's own request, or what `load` brings."""
        ...

    def last_good(self, incoming: Incoming) -> Answer | None: ...


class Fetcher:
    """Gets parts. Belongs to no request; safe for greenlets."""

    def __init__(
        self, calls: Sending, view: Reading, cache: PartCache | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._calls = calls
        self._view = view
        self._cache = cache
        self._clock = clock

    def fetch(
        self, name: str, part: Part, incoming: Incoming, values: Mapping[str, str], timeout_s: float
    ) -> Result:
        """The part, within `timeout_s`: whatever goes wrong is told in the result. Only the greenlet's end passes through."""
        until = self._clock.monotonic() + timeout_s
        reserve_s = min(MOST_RESERVE_S, timeout_s * RESERVE_SHARE)
        try:
            asked = _own_request(part, incoming, part.target.fill(values), until - reserve_s)
        except ValueError:
            return Result(name, part.service, "invalid", reason="the path cannot be made")
        result = self._timed(timeout_s - reserve_s, name, part, lambda: self._asked(name, part, asked))
        if result.usable or result.state == "refused" or part.fallback == "none":
            return result
        if part.fallback == "empty":
            return _instead(result, "fallback", b"[]" if part.expect == "array" else b"{}", "declaration")
        left_s = until - self._clock.monotonic()
        good = self._timed(left_s, name, part, lambda: self._last_good(result, part, asked))
        return good if good.usable else result

    def _timed(self, seconds: float, name: str, part: Part, work: Callable[[], Result]) -> Result:
        timer = gevent.Timeout(max(MIN_LEFT_S, seconds))
        try:
            with timer:
                return work()
        except gevent.Timeout as late:
            if late is not timer:
                raise
            return Result(name, part.service, "timeout", reason="no answer in time")
        except (CallError, GatewayError) as error:
            gone = not self._view.snapshot().instances(part.service)
            return failed(name, part.service, error, absent=gone)
        except NotUsable as error:
            return Result(name, part.service, "invalid", reason=str(error))
        except Exception as error:  # one part's fault must not be the others'
            log.exception("part failed", part=name, service=part.service, error=type(error).__name__)
            return Result(name, part.service, "failed", reason="the gateway failed")

    def _asked(self, name: str, part: Part, asked: Incoming) -> Result:
        def load(extra: Mapping[str, str]) -> Answer:
            return self._call(part, asked, extra)

        if part.cache is None or self._cache is None:
            answer = load({})
        else:
            answer = self._cache.part(asked, part.cache, load)
        return _checked(name, part, answer)

    def _call(self, part: Part, asked: Incoming, extra: Mapping[str, str]) -> Answer:
        left_s = max(MIN_LEFT_S, asked.deadline - self._clock.monotonic())
        response = self._calls.send(
            asked,
            "GET",
            part.service,
            asked.target,
            headers={**asked.headers, **extra},
            deadline_s=left_s,
            stream=True,
            source_key=asked.client,
        )
        with response:
            headers = [(key, value) for key in _KEPT if (value := response.headers.get(key)) is not None]
            answer = Answer(response.status, headers, source=response.instance.id, attempts=response.attempts)
            if response.status == 200:
                answer.body = self._body(response, part, asked)
        return answer

    def _body(self, response: Response, part: Part, asked: Incoming) -> bytes:
        """The body of a good answer. Raises NotUsable: what is of no use is not to be kept either."""
        try:
            response.read_whole(part.max_bytes, lambda: asked.deadline - self._clock.monotonic())
        except ValueError:
            raise NotUsable(f"longer than {part.max_bytes} bytes") from None
        if part.cache is not None:
            member_of(response.data, part.take, part.expect)
        return response.data

    def _last_good(self, result: Result, part: Part, asked: Incoming) -> Result:
        answer = self._cache.last_good(asked) if self._cache is not None else None
        if answer is None:
            return result
        good = _checked(result.name, part, answer)
        if not good.usable or good.data is None:
            return result
        return _instead(result, "stale", good.data, answer.source, _age(answer))


def _own_request(part: Part, incoming: Incoming, target: str, deadline: float) -> Incoming:
    """The part's request, as if the client had asked for it: what is kept for one counts for the other."""
    path, _, query = target.partition("?")
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    for name in ("authorization", *part.headers):
        value = incoming.headers.get(name)
        if value is not None:
            headers[name] = value
    headers["x-request-id"] = incoming.request_id
    headers["traceparent"] = incoming.traceparent
    return replace(
        incoming,
        method="GET",
        path=path,
        query=query,
        headers=headers,
        service=part.service,
        deadline=deadline,
        body=None,
    )


def _checked(name: str, part: Part, answer: Answer) -> Result:
    """An answer as a result: a 200 of JSON in the declared shape is one, anything else says what it is."""
    known: dict[str, Any] = {
        "source": answer.source,
        "age_s": _age(answer),
        "attempts": answer.attempts,
        "upstream_status": answer.status,
        "headers": answer.headers,
        "cached": answer.header("x-cache"),
    }
    if answer.status != 200:
        state: State = (
            "refused" if 400 <= answer.status < 500 else "failed" if answer.status >= 500 else "invalid"
        )
        return Result(name, part.service, state, reason=f"the service answered {answer.status}", **known)
    body = answer.body if isinstance(answer.body, bytes) else b"".join(answer.body)
    try:
        data = member_of(body, part.take, part.expect)
    except NotUsable as error:
        return Result(name, part.service, "invalid", reason=str(error), **known)
    return Result(name, part.service, "stale" if known["cached"] == "STALE" else "ok", data, **known)


def _instead(result: Result, state: State, data: bytes, source: str, age_s: int = 0) -> Result:
    return Result(
        result.name,
        result.service,
        state,
        data,
        source,
        age_s,
        result.attempts,
        result.reason,
        result.upstream_status,
        cached="STALE" if state == "stale" else None,
    )


def _age(answer: Answer) -> int:
    for name in ("x-stale-age", "age"):
        text = answer.header(name)
        if text is not None and text.isascii() and text.isdigit() and len(text) < 10:
            return int(text)
    return 0
