"""One composed route at work: its parts fetched at once under one deadline, then put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import gevent
from gevent.event import Event

from discovery.clock import SYSTEM_CLOCK, Clock
from gateway.compose.config import SUBJECT, Part, Route
from gateway.compose.merge import asks_anew, problem, shared_s, whole
from gateway.compose.part import Fetcher
from gateway.compose.result import Result
from gateway.compose.wholes import Made, Wholes
from gateway.errors import Refused
from gateway.metrics import GatewayMetrics
from gateway.model import Answer, Incoming
from services.kit.stale.stored_form import plain_path
from services.kit.web.context import current


class Composition:
    """Answers one declared route."""

    def __init__(
        self,
        route: Route,
        fetcher: Fetcher,
        wholes: Wholes,
        metrics: GatewayMetrics,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.route = route
        self._fetcher = fetcher
        self._wholes = wholes
        self._metrics = metrics
        self._clock = clock
        self._vary = sorted({header for part in route.parts.values() for header in part.headers})
        # What is kept for one subject is in no answer for others, whatever its service says of it.
        own = any(part.cache is not None and part.cache.scope == "subject" for part in route.parts.values())
        self._personal = route.auth == "token" or own

    def match(self, path: str) -> dict[str, str] | None:
        """The placeholders' values in a path of this route; None for another's."""
        return self.route.template.match(path)

    def answer(self, incoming: Incoming, found: Mapping[str, str]) -> Answer:
        """The whole; `found` is what `match` found. Raises Refused: another method, no token where there must be one; PartFailed for a part that is needed."""
        route = self.route
        current().route = route.path
        if incoming.method not in route.methods:
            allowed = ", ".join(route.methods)
            raise Refused(405, f"This path takes {allowed}.", headers=[("Allow", allowed)])
        values = found
        if route.auth == "token":
            values = {**found, SUBJECT: incoming.prove().subject}
        if self._personal:
            return _finish(incoming, self._make(incoming, values).answer)
        return _finish(incoming, self._get_or_make(incoming, values))

    def _get_or_make(self, incoming: Incoming, values: Mapping[str, str]) -> Answer:
        """The whole where it does not depend on the caller's token."""
        headers = incoming.headers
        return self._wholes.get_or_make(
            (incoming.path, *[headers.get(name) for name in self._vary]),
            lambda: self._make(incoming, values),
            lambda results: whole(incoming, results, personal=False, vary=self._vary),
            wait_s=incoming.deadline - self._clock.monotonic(),
            renew=asks_anew(headers.get("cache-control")),
        )

    def _make(self, incoming: Incoming, values: Mapping[str, str]) -> Made:
        """The whole, from its services. Raises PartFailed."""
        route = self.route
        results = self._gather(incoming, values)
        for each in results:
            self._metrics.parts.labels(route.name, each.name, each.state).inc()
        needed = [each for each in results if route.parts[each.name].required and not each.usable]
        if needed:
            # Where several are missing, the one to mend first: a token before what it gives access to.
            worst = min(needed, key=lambda each: (each.state == "cancelled", each.answer_status))
            raise problem(worst, results)
        answer = whole(incoming, results, personal=self._personal, vary=self._vary)
        fresh_s = shared_s(answer, self._vary)
        if not fresh_s:
            return Made(answer)
        places = [
            (part.service, plain_path(part.target.fill(values).partition("?")[0]))
            for part in route.parts.values()
        ]
        return Made(answer, results, fresh_s, places)

    def _gather(self, incoming: Incoming, values: Mapping[str, str]) -> list[Result]:
        """How each part went, in the order of their declaration; those that are not there in time count as late."""
        timeout_s = min(incoming.deadline - self._clock.monotonic(), self.route.timeout_s)
        board = _Board(self.route.parts)
        greenlets = []
        try:
            for name, part in self.route.parts.items():
                usual = replace(incoming, timeout_s=self.route.timeout_s * part.share)
                work = partial(self._fetcher.fetch, name, part, usual, values, timeout_s * part.share)
                greenlets.append(gevent.spawn(board.run, part, work))
            board.decided.wait(max(0.0, timeout_s))
        finally:
            gevent.killall([each for each in greenlets if not each.dead], block=False)
        return [board.results.get(name) or board.missing(name) for name in self.route.parts]


class _Board:
    """What has come in so far. `decided` once all is there, or once a part that is needed has failed."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.decided = Event()
        self.results: dict[str, Result] = {}
        self._parts = parts

    def run(self, part: Part, work: partial[Result]) -> None:
        result = work()
        self.results[result.name] = result
        if len(self.results) == len(self._parts) or (part.required and not result.usable):
            self.decided.set()

    def missing(self, name: str) -> Result:
        """A part that was cut off: the time was over, or the answer decided without it."""
        service = self._parts[name].service
        if self.decided.is_set():
            return Result(
                name, service, "cancelled", reason="not waited for: another part failed that is needed"
            )
        return Result(name, service, "timeout", reason="no answer in time")


def _finish(incoming: Incoming, answer: Answer) -> Answer:
    """The answer as it goes out: its length, and to a HEAD nothing more."""
    if answer.status == 200 and isinstance(answer.body, bytes):
        answer.headers.append(("Content-Length", str(len(answer.body))))
        if incoming.method == "HEAD":
            answer.body = b""
    return answer
