"""Carrying out plans, one backend at a time, and remembering which servers are still draining."""

from __future__ import annotations

import structlog

from haproxy.controller.config.model import Backend
from haproxy.controller.config.template import Params, server_params
from haproxy.controller.metrics import Metrics
from haproxy.controller.runtime.diff import Step, draining, plan_backend
from haproxy.controller.runtime.socket import Session, succeeded

log = structlog.get_logger(__name__)

# A drained server is looked at again soon (most requests end in milliseconds), then less and less often.
_FIRST_LOOK_S = 0.02
_LAST_LOOK_S = 1.0
LINES_PER_S = 20


class Applier:
    """Observes a backend, plans, and sends the plan. Times are monotonic seconds, given by the caller."""

    def __init__(self, metrics: Metrics, drain_s: float) -> None:
        self._metrics = metrics
        self._drain_s = drain_s
        # As in the file that was last rendered: a server added at run time gets what the file says.
        self.params: Params = server_params
        # service → server → since when it drains
        self._draining: dict[str, dict[str, float]] = {}
        # service → (when to look again, pause before the look after that)
        self._looks: dict[str, tuple[float, float]] = {}
        # backend → the second of its last line in the log, and how many changes it had in it
        self._noted: dict[str, tuple[int, int]] = {}
        # What was refused last, so that the same refusal is logged once.
        self._refusals: dict[tuple[str, str], str] = {}

    def due(self) -> list[float]:
        """When services with draining servers want to be looked at."""
        return [at for at, _ in self._looks.values()]

    def take_due(self, now: float) -> set[str]:
        """The services to look at now."""
        return {service for service, (at, _) in self._looks.items() if at <= now}

    def drop(self, service: str) -> None:
        """Its backend belongs to no route any more, and goes with the next reload."""
        self._draining.pop(service, None)
        self._looks.pop(service, None)
        self._noted.pop(f"svc_{service}", None)

    def forget(self) -> None:
        """Another worker: nothing drains in it yet."""
        self._draining.clear()
        self._looks.clear()
        self._refusals.clear()

    def bring(self, session: Session, backend: Backend, now: float) -> bool:
        """Bring one backend in step. False when HAProxy has no such backend. Raises Unreachable.

        A refused command is counted and logged; the next look or full sync plans again from what is then there.
        """
        service = backend.route.service
        observed = session.servers(backend.name)
        if observed is None:
            self._looks.pop(service, None)
            return False
        before = self._draining.get(service, {})
        since = {name: before.get(name, now) for name in draining(backend, observed)}
        overdue = frozenset(name for name, began in since.items() if now - began >= self._drain_s)
        steps = plan_backend(backend, observed, overdue, self.params)
        # All of them: a refused step must not keep the others from being done.
        done = [step for step in steps if self._send(session, step, now)]
        self._remember(service, since, done, now, refused=len(done) < len(steps))
        return True

    def _remember(
        self, service: str, since: dict[str, float], done: list[Step], now: float, refused: bool
    ) -> None:
        removed = {step.server for step in done if step.kind == "remove"}
        since = {name: began for name, began in since.items() if name not in removed}
        if not since and not refused:
            self._draining.pop(service, None)
            self._looks.pop(service, None)
            return
        self._draining[service] = since
        progressed = any(step.kind in ("drain", "remove") for step in done)
        pause = (
            _FIRST_LOOK_S
            if progressed
            else min(_LAST_LOOK_S, self._looks.get(service, (0, _FIRST_LOOK_S))[1] * 2)
        )
        self._looks[service] = (now + pause, pause)

    def _send(self, session: Session, step: Step, now: float) -> bool:
        for line in step.commands:
            answer = session.send(line)
            good = succeeded(answer)
            name = " ".join(line.words[:2])
            self._metrics.commands.labels(name, "ok" if good else "refused").inc()
            if not good:
                self._warn(step, str(line), answer.strip())
                return False
        self._refusals.pop((step.backend, step.server), None)
        self._note(step, now)
        return True

    def _note(self, step: Step, now: float) -> None:
        """At most so many lines a second for each backend: an instance that flaps must not fill the log."""
        second, count = self._noted.get(step.backend, (0, 0))
        if second != int(now):
            if count > LINES_PER_S:
                log.info("server changes not logged", backend=step.backend, count=count - LINES_PER_S)
            second, count = int(now), 0
        self._noted[step.backend] = (second, count + 1)
        if count < LINES_PER_S:
            log.info(
                "server changed", step=step.kind, backend=step.backend, server=step.server, reason=step.reason
            )

    def _warn(self, step: Step, line: str, answer: str) -> None:
        refusal = f"{line[:200]} → {answer[:200]}"
        if self._refusals.get((step.backend, step.server)) == refusal:
            return
        self._refusals[(step.backend, step.server)] = refusal
        log.warning("command refused", refusal=refusal, step=step.kind, server=step.server)
