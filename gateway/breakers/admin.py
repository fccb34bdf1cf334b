"""`/edge/breakers`: the breakers of all gateways, shown and set by hand; and their metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, model_validator

from discovery.model import Domain
from discovery.resilience.breaker import State, Transition
from gateway.breakers.news import GROUPS, LONGEST_HOLD_S, Name, Picture
from gateway.breakers.sync import Sharing
from gateway.metrics import BreakerMetrics
from services.kit import Problem, ServiceApp, ServiceBlueprint, current, require_scope
from services.kit.calls.client import CallObserver
from services.kit.telemetry.metrics import Metrics
from services.kit.web.problems import busy

log = structlog.get_logger(__name__)

PREFIX = "/edge/breakers"
# How long an opening lasts where the operator names no time.
USUAL_HOLD_S = 300.0
CAUSES = ("local", "shared", "hand")


class BreakerObserver(CallObserver):
    """The kit's metrics of calls, and those of breakers. `on_change` is called with every transition too: see `Sharing.changed`."""

    def __init__(self, metrics: Metrics, own: BreakerMetrics) -> None:
        super().__init__(metrics)
        self._own = own
        self.on_change: Callable[[str, Transition], None] | None = None

    def on_call(self, service: str, method: str, outcome: str, attempts: int, duration_s: float) -> None:
        super().on_call(service, method, outcome, attempts, duration_s)
        if outcome == "BreakerOpen":
            self._own.refused.labels(service).inc()

    def on_transition(self, service: str, transition: Transition) -> None:
        super().on_transition(service, transition)
        self._own.transitions.labels(service, transition.state, transition.who).inc()
        for cause in CAUSES:
            present = transition.state != "closed" and cause == transition.who
            self._own.causes.labels(service, cause).set(int(present))
        if self.on_change is not None:
            self.on_change(service, transition)


class BreakerPath(BaseModel):
    """`group` is a gateway's domain."""

    group: str
    service: Name


class Order(BaseModel):
    """`for_s` belongs to `open`: it stays open for so long, or until it is set again."""

    model_config = ConfigDict(strict=True, extra="forbid")

    state: State
    for_s: float | None = Field(default=None, gt=0, le=LONGEST_HOLD_S, allow_inf_nan=False)
    reason: str = Field(default="", max_length=100)

    @model_validator(mode="after")
    def _only_open_has_an_end(self) -> Self:
        if self.for_s is not None and self.state != "open":
            raise ValueError("for_s belongs to the state open")
        return self


def install(app: ServiceApp, sharing: Callable[[], Sharing | None]) -> None:
    """Add the views to an application that has not started yet; `sharing` gives what they show once it has."""
    blueprint = ServiceBlueprint("breakers", __name__, url_prefix=PREFIX)

    def running() -> Sharing:
        found = sharing()
        if found is None:
            raise busy("The gateway is starting.")
        return found

    @blueprint.get("", strict_slashes=False)
    @require_scope("admin")
    def show() -> Any:
        """The breakers of every gateway: state, counts and last transitions, by group and instance."""
        return _overview(running()), {"Cache-Control": "no-store"}

    @blueprint.post("/<group>/<service>")
    @require_scope("admin")
    def set_by_hand(path: BreakerPath, body: Order) -> Any:
        """Open, half-open or close a service's breaker in every process of a group."""
        return _order(running(), path, body)

    @blueprint.delete("/<group>/<service>")
    @require_scope("admin")
    def reset(path: BreakerPath) -> Any:
        """Close a service's breaker in every process of a group, and forget what was counted."""
        return _order(running(), path, Order(state="closed", reason="reset"))

    app.register_api(blueprint)


def _overview(sharing: Sharing) -> dict[str, Any]:
    members, reached = sharing.members(GROUPS)
    now = sharing.picture().at
    answer: dict[str, Any] = {"asked": sharing.instance, "shared": reached, "groups": {}}
    if not reached:
        answer["detail"] = "Redis is away: only the breakers of the process that was asked are shown."
    for group, pictures in members.items():
        shown = {id_: _shown(picture, now) for id_, picture in pictures.items() if picture}
        silent = [id_ for id_ in pictures if id_ not in shown]
        answer["groups"][group] = {"instances": shown, "silent": silent}
    return answer


def _shown(picture: Picture, now: float) -> dict[str, Any]:
    shown = picture.model_dump(include={"sharing", "breakers"})
    for breaker in shown["breakers"].values():
        last = breaker["transitions"][-1:]
        breaker["who"] = last[0]["who"] if last else None
    return {"age_s": round(max(0.0, now - picture.at), 3), **shown}


def _order(sharing: Sharing, path: BreakerPath, order: Order) -> Any:
    group = _group(path.group)
    if not sharing.knows(path.service):
        raise Problem(404, detail=f"There is no service {path.service}.")
    for_s = (order.for_s or USUAL_HOLD_S) if order.state == "open" else 0.0
    subject = current().subject
    reason = f"by {subject}" + (f": {order.reason}" if order.reason else "")
    outcome = sharing.order(group, path.service, order.state, for_s, reason, request_id=current().request_id)
    if not outcome.taken_by and not outcome.shared:
        detail = "Redis is away, and this gateway is of another group: no process has taken the order."
        raise busy(detail)
    done: dict[str, Any] = {
        "order": outcome.id,
        "group": group,
        "state": order.state,
        "for_s": for_s or None,
        "taken_by": outcome.taken_by,
        "missing": outcome.missing,
    }
    log.info("breaker ordered by hand", subject=subject, upstream=path.service, **done)
    answer = {**done, "service": path.service, "shared": outcome.shared}
    if not outcome.shared:
        answer["detail"] = "Redis is away: only the process that was asked has taken it."
    elif outcome.missing:
        answer["detail"] = "Not all processes have confirmed it in time."
    return answer, 200 if not outcome.missing and outcome.taken_by else 202


def _group(name: str) -> Domain:
    for group in GROUPS:
        if group == name:
            return group
    raise Problem(404, detail=f"There is no group {name[:40]}: it is one of {', '.join(GROUPS)}.")
