"""`/edge/breakers`: the breakers of all gateways, looked at and set by hand; and how they come into the metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, model_validator

from discovery.model import Domain
from discovery.resilience.breaker import Transition
from gateway.breakers.messages import GROUPS, LONGEST_HOLD_S, USUAL_HOLD_S, Name, Picture, State
from gateway.breakers.sync import Outcome, Sharing
from gateway.metrics import BreakerMetrics
from services.kit import Problem, ServiceApp, ServiceBlueprint, current, require_scope
from services.kit.calls.client import CallObserver
from services.kit.telemetry.metrics import Metrics
from services.kit.web.problems import busy

log = structlog.get_logger(__name__)

PREFIX = "/edge/breakers"
CAUSES = ("local", "shared", "hand")


class BreakerObserver(CallObserver):
    """The kit's metrics of calls, and what becomes of breakers. `tell` hears of every transition: see `Sharing.changed`."""

    def __init__(self, metrics: Metrics, own: BreakerMetrics) -> None:
        super().__init__(metrics)
        self._own = own
        self.tell: Callable[[str, Transition], None] | None = None

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
        if self.tell is not None:
            self.tell(service, transition)


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
    members, reached = sharing.pictures.members(GROUPS)
    answer: dict[str, Any] = {"asked": sharing.instance, "shared": reached}
    if not reached:
        answer["detail"] = "Redis is away: only the breakers of the process that was asked are shown."
    now = sharing.pictures.own().at
    answer["groups"] = {
        group: {
            "instances": {id_: _shown(picture, now) for id_, picture in pictures.items() if picture},
            "silent": [id_ for id_, picture in pictures.items() if picture is None],
        }
        for group, pictures in members.items()
    }
    return answer


def _shown(picture: Picture, now: float) -> dict[str, Any]:
    shown = picture.model_dump(include={"sharing", "breakers"})
    return {"age_s": round(max(0.0, now - picture.at), 3), **shown}


def _order(sharing: Sharing, path: BreakerPath, order: Order) -> Any:
    group = _group(path.group)
    if not sharing.knows(path.service):
        raise Problem(404, detail=f"There is no service {path.service}.")
    for_s = (order.for_s or USUAL_HOLD_S) if order.state == "open" else 0.0
    who = current().subject
    reason = f"by {who}" + (f": {order.reason}" if order.reason else "")
    outcome = sharing.order(group, path.service, order.state, for_s, reason, request_id=current().request_id)
    log.info(
        "breaker ordered by hand",
        subject=who,
        group=group,
        upstream=path.service,
        state=order.state,
        for_s=for_s or None,
        order=outcome.id,
        taken_by=outcome.taken_by,
        missing=outcome.missing,
    )
    if not outcome.taken_by and not outcome.shared:
        raise Problem(
            503,
            detail="Redis is away, and this gateway is of another group: nobody has taken the order.",
            headers={"Retry-After": "1"},
        )
    return _said(outcome, path, order, for_s), 200 if not outcome.missing and outcome.taken_by else 202


def _group(name: str) -> Domain:
    for group in GROUPS:
        if group == name:
            return group
    raise Problem(404, detail=f"There is no group {name[:40]}: it is one of {', '.join(GROUPS)}.")


def _said(outcome: Outcome, path: BreakerPath, order: Order, for_s: float) -> dict[str, Any]:
    said: dict[str, Any] = {"order": outcome.id, "group": path.group, "service": path.service}
    said |= {"state": order.state, "for_s": for_s or None}
    said |= {"taken_by": outcome.taken_by, "missing": outcome.missing, "shared": outcome.shared}
    if not outcome.shared:
        said["detail"] = "Redis is away: only the process that was asked has taken it."
    elif outcome.missing:
        said["detail"] = "Not all processes have said in time that they have taken it."
    return said
