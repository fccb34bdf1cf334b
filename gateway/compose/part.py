"""One part: asked for, read within its bounds, checked; or what stands in for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import gevent
import structlog

from discovery.balancing.balancer import usable
from discovery.balancing.ejection import Identity
from discovery.calls.guard import FAILED_STATUSES
from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul.static import Reading
from discovery.errors import CallError
from discovery.http.response import Response
from gateway.cache import AnswerCache
from gateway.compose.config import Part
from gateway.compose.hedge import Outcome, hedged
from gateway.compose.jsonpart import NotUsable, member_of
from gateway.compose.result import Result, State, describe_failure
from gateway.errors import GatewayError
from gateway.metrics import GatewayMetrics
from gateway.model import Answer, Incoming
from gateway.proxy import Calls
from gateway.request import VIA

log = structlog.get_logger(__name__)

MIN_LEFT_S = 0.001
# A part's own answer ends this much before the whole must be there, so that there is time for what stands in for it.
RESERVE_SHARE = 0.1
MOST_RESERVE_S = 0.15
# What is looked at of an answer's headers; for the cache, which judges by more of them, all are kept.
_SAYS = ("cache-control", "vary", "age")
_REFUSES = ("retry-after", "www-authenticate")


class Fetcher:
    """Gets parts. Belongs to no request; safe for greenlets."""

    def __init__(
        self,
        calls: Calls,
        view: Reading,
        cache: AnswerCache,
        metrics: GatewayMetrics,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._calls = calls
        self._view = view
        self._cache = cache
        self._metrics = metrics
        self._clock = clock

    def fetch(
        self, name: str, part: Part, incoming: Incoming, values: Mapping[str, str], timeout_s: float
    ) -> Result:
        """The part, within `timeout_s`: whatever goes wrong is in the result. Only the greenlet's end passes through."""
        until = self._clock.monotonic() + timeout_s
        reserve_s = min(MOST_RESERVE_S, timeout_s * RESERVE_SHARE)
        try:
            asked = _own_request(part, incoming, part.target.fill(values), until - reserve_s)
        except ValueError:
            return Result(name, part.service, "invalid", reason="the path cannot be made")
        # The call ends by its own deadline, which its breaker hears of; the timer is for everything else that may hang.
        result = self._timed(timeout_s - reserve_s / 2, name, part, lambda: self._ask(name, part, asked))
        if result.usable or result.state == "refused" or part.fallback == "none":
            return result
        if part.fallback == "empty":
            return _stand_in(result, "fallback", b"[]" if part.expect == "array" else b"{}", "declaration")
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
            return describe_failure(name, part.service, error, absent=gone)
        except NotUsable as error:
            return Result(name, part.service, "invalid", reason=str(error))
        except Exception as error:  # one part's fault must not be the others'
            log.exception("part failed", part=name, service=part.service, error=type(error).__name__)
            return Result(name, part.service, "failed", reason="the gateway failed")

    def _ask(self, name: str, part: Part, asked: Incoming) -> Result:
        policy = part.cache
        if policy is None:
            return _check(name, part, self._call(part, asked))
        identity = asked.identify() if policy.scope == "subject" else None
        answer = self._cache.part(
            part.service,
            asked.target,
            policy,
            lambda: self._call(part, asked),
            identity=identity,
            asked=asked,
        )
        result = _check(name, part, answer)
        cached = answer.header("x-cache")
        stored = cached in ("HIT", "STALE")
        return replace(
            result,
            state="stale" if result.usable and _seconds(answer, "x-stale-age") else result.state,
            cached=cached,
            age_s=_seconds(answer, "age"),
            source="cache" if stored else result.source,
            attempts=0 if stored else result.attempts,
        )

    def _call(self, part: Part, asked: Incoming) -> Answer:
        """The service's answer. Raises CallError, GatewayError; NotUsable: what is of no use is not to be kept either."""
        places: set[Identity] = set()

        def attempt() -> Response:
            return self._calls.send(
                asked,
                "GET",
                part.service,
                asked.target,
                headers=asked.headers,
                deadline_s=max(MIN_LEFT_S, asked.deadline - self._clock.monotonic()),
                usual_s=asked.timeout_s * (1.0 - RESERVE_SHARE),
                source_key=asked.client,
                max_body_bytes=part.max_bytes,
                places=places,
            )

        try:
            won = self._hedged(part, attempt)
        except ValueError:
            raise NotUsable(f"longer than {part.max_bytes} bytes") from None
        response = won.value
        if part.cache is not None:
            headers = list(response.headers.items())
        else:
            names = _SAYS if response.status == 200 else _REFUSES
            headers = [(name, value) for name in names if (value := response.headers.get(name)) is not None]
        if response.status == 200 and part.cache is not None:
            member_of(response.data, part.take, part.expect)
        return Answer(
            response.status,
            headers,
            response.data,
            source="live",  # no answer says where instances are
            attempts=response.attempts + won.hedged,
        )

    def _hedged(self, part: Part, attempt: Callable[[], Response]) -> Outcome[Response]:
        delay_s = self._calls.client.latency_s(part.service) if part.hedge else None
        if delay_s is None or len(usable(self._view.snapshot().instances(part.service))) < 2:
            return Outcome(attempt())
        won = hedged(
            attempt,
            delay_s=delay_s,
            may=lambda: self._calls.client.spend_retry(part.service),
            good=lambda response: response.status not in FAILED_STATUSES,
        )
        if won.hedged:
            self._metrics.hedges.labels(part.service, "second" if won.won else "first").inc()
        return won

    def _last_good(self, result: Result, part: Part, asked: Incoming) -> Result:
        answer = self._cache.last_good(asked)
        if answer is None:
            return result
        good = _check(result.name, part, answer)
        if not good.usable or good.data is None:
            return result
        return _stand_in(result, "stale", good.data, answer.source, good.age_s)


def _own_request(part: Part, incoming: Incoming, target: str, deadline: float) -> Incoming:
    """The part's request, as if the client had asked for it: what is kept for one counts for the other."""
    path, _, query = target.partition("?")
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    # What every caller may get out of the cache is asked for without a caller.
    shared = part.cache is not None and part.cache.scope == "public"
    for name in part.headers if shared else ("authorization", *part.headers):
        value = incoming.headers.get(name)
        if value is not None:
            headers[name] = value
    headers["x-request-id"] = incoming.request_id
    headers["traceparent"] = incoming.traceparent
    if VIA in incoming.headers:
        headers[VIA] = incoming.headers[VIA]
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


def _check(name: str, part: Part, answer: Answer) -> Result:
    """An answer as a result: a 200 of JSON in the declared shape is one, anything else says what it is."""
    known: dict[str, Any] = {
        "source": answer.source,
        "age_s": _seconds(answer, "x-stale-age", "age"),
        "attempts": answer.attempts,
        "upstream_status": answer.status,
        "headers": answer.headers,
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
    return Result(name, part.service, "ok", data, **known)


def _stand_in(result: Result, state: State, data: bytes, source: str, age_s: int = 0) -> Result:
    cached = "STALE" if state == "stale" else None
    return replace(result, state=state, data=data, source=source, age_s=age_s, headers=[], cached=cached)


def _seconds(answer: Answer, *names: str) -> int:
    """The number in the first of these headers that has one."""
    for name in names:
        text = answer.header(name)
        if text is not None and text.isascii() and text.isdigit() and len(text) < 10:
            return int(text)
    return 0
