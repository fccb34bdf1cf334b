"""What is answered in place of what was asked for: errors, as problem+json or as OpenAI's error object under /v1 and /chat; and
the last good answer. The one place where that is decided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic_core import to_json

from discovery.errors import (
    BreakerOpen,
    BudgetExhausted,
    CallError,
    DeadlineExceeded,
    NoInstance,
    NotSent,
    ResponseLost,
    ResponseTimeout,
)
from discovery.http.body import BodyFailed
from gateway.errors import GatewayError, LimitExceeded, Overloaded, PartFailed, Refused, RouteUnknown
from gateway.model import Answer, Headers, Incoming, is_openai
from services.kit.web.problems import MEDIA_TYPE, phrase

log = structlog.get_logger(__name__)

RETRY_AFTER_S = 1.0
# OpenAI's `code` by status; its `type` by status, below.
_CODES = {
    401: "invalid_token",
    403: "insufficient_scope",
    404: "not_found",
    413: "request_too_large",
    429: "rate_limit_exceeded",
    502: "bad_gateway",
    503: "service_unavailable",
    504: "gateway_timeout",
}
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class Fault:
    """What an error means to the client. `failed` is the layer that failed: `gateway` or `service`. Without a `code` it is the status's."""

    status: int
    detail: str
    failed: str = "gateway"
    code: str = ""
    retry_after_s: float | None = None
    attempts: int = 0
    headers: tuple[tuple[str, str], ...] = ()


class Problems:
    """Turns errors into answers. `breaker` gives the state of a service's breaker."""

    def __init__(self, gateway: str, breaker: Callable[[str], str]) -> None:
        self._gateway = gateway
        self._breaker = breaker

    def answer(
        self, error: Exception, *, path: str, request_id: str, service: str = "", **members: Any
    ) -> Answer:
        """The answer to an error. `service` is the upstream concerned; `members` are added to the problem object."""
        fault = fault_of(error)
        if fault.status >= 500 and not isinstance(error, GatewayError | CallError | ValueError):
            log.error("request failed", upstream=service, error=type(error).__name__, exc_info=error)
        if is_openai(path):
            kind, data = "application/json", self.openai(error)
        else:
            if isinstance(error, Refused):
                members = {**error.members, **members}
            kind, data = MEDIA_TYPE, to_json({**members, **self._object(fault, path, request_id, service)})
        headers: Headers = [
            ("Content-Type", kind),
            ("Cache-Control", "no-store"),
            ("Content-Length", str(len(data))),
            *fault.headers,
        ]
        if fault.retry_after_s is not None:
            headers.append(("Retry-After", str(max(1, math.ceil(fault.retry_after_s)))))
        return Answer(fault.status, headers, data, attempts=fault.attempts)

    def _object(self, fault: Fault, path: str, request_id: str, service: str) -> dict[str, Any]:
        return {
            "type": "about:blank",
            "title": phrase(fault.status),
            "status": fault.status,
            "detail": fault.detail,
            "instance": path,
            "request_id": request_id,
            "layer": "gateway",
            "service": service or self._gateway,
            "failed": fault.failed,
            "source": "gateway",
            "attempts": fault.attempts,
            **({"breaker": self._breaker(service)} if service else {}),
        }

    def openai(self, error: Exception) -> bytes:
        """OpenAI's error object, as JSON on one line."""
        fault = fault_of(error)
        kind = _KINDS.get(fault.status) or (
            "server_error" if fault.status >= 500 else "invalid_request_error"
        )
        code = fault.code or _CODES.get(fault.status, "invalid_request")
        return to_json({"error": {"message": fault.detail, "type": kind, "param": None, "code": code}})

    def of(self, incoming: Incoming, error: Exception, **members: Any) -> Answer:
        """The answer to an error of a request that got as far as being one."""
        service = incoming.service if incoming.route is not None else getattr(error, "service", "")
        return self.answer(
            error, path=incoming.path, request_id=incoming.request_id, service=service, **members
        )


class Fallbacks:
    """What is answered when the service cannot be asked: by a policy that belongs to the domain.

    identity and business: the last good answer that the caller may have, a public one or its own; else business adds to its 503
    what is known. ai: OpenAI's error object. A write is never answered as if it had happened. Overload is refused at once: a look
    into Redis for each refusal would cost as much as the refusal. `last_good` finds the last good answer to a request.
    """

    def __init__(
        self, problems: Problems, last_good: Callable[[Incoming], Answer | None] = lambda _: None
    ) -> None:
        self._problems = problems
        self._last_good = last_good

    def of_error(self, incoming: Incoming, error: Exception) -> Answer:
        """The answer to a request whose call failed."""
        stale = None if isinstance(error, Overloaded) else self._stale(incoming)
        return stale or self._problems.of(incoming, error, **_degraded(incoming, error))

    def of_answer(self, incoming: Incoming, answer: Answer) -> Answer:
        """The answer to a request that the service answered with a failure of its own: something better, or that."""
        stale = self._stale(incoming)
        if stale is None:
            return answer
        answer.close()
        return stale

    def _stale(self, incoming: Incoming) -> Answer | None:
        if not incoming.reads or incoming.domain == "ai":
            return None
        answer = self._last_good(incoming)
        return answer.with_headers(("Cache-Control", "no-store")) if answer is not None else None


def _degraded(incoming: Incoming, error: Exception) -> dict[str, Any]:
    """What business adds to a problem: that it is not the whole truth, and as much of it as is known."""
    if incoming.domain != "business":
        return {}
    if incoming.reads:
        return {"degraded": True, "known": {"stored_answer": False}}
    sent = isinstance(error, ResponseLost) or (
        isinstance(error, DeadlineExceeded | Overloaded) and error.sent
    )
    return {"degraded": True, "known": {"done": "unknown" if sent else False}}


def fault_of(error: Exception) -> Fault:
    """What is to be said about an error."""
    if isinstance(error, CallError):
        return _call_fault(error)
    if isinstance(error, LimitExceeded):
        headers = tuple(error.headers)
        return Fault(
            429, "You have sent too many requests.", retry_after_s=error.retry_after_s, headers=headers
        )
    if isinstance(error, Overloaded):
        busy = "gateway" if error.scope == "group" else "service"
        return Fault(503, f"The {busy} is overloaded.", code="overloaded", retry_after_s=error.retry_after_s)
    if isinstance(error, RouteUnknown):
        return Fault(404, error.detail)
    if isinstance(error, Refused):
        return _refused_fault(error)
    if isinstance(error, GatewayError):
        return Fault(503, error.detail, retry_after_s=error.retry_after_s)
    if isinstance(error, BodyFailed):
        cause = error.__cause__
        return (
            fault_of(cause)
            if isinstance(cause, Refused)
            else Fault(400, "The body is incomplete or malformed.")
        )
    if isinstance(error, ValueError):
        return Fault(400, "The request cannot be forwarded as it is.")
    return Fault(500, "The gateway failed to process the request.", code="internal_error")


def _refused_fault(error: Refused) -> Fault:
    part = isinstance(error, PartFailed)
    named = any(name.lower() == "retry-after" for name, _ in error.headers)
    return Fault(
        error.status,
        error.detail,
        "service" if part and error.status >= 500 else "gateway",
        retry_after_s=error.retry_after_s if error.status == 503 and not named else None,
        attempts=error.attempts if isinstance(error, PartFailed) else 0,
        headers=tuple(error.headers),
    )


def _call_fault(error: CallError) -> Fault:
    name, attempts = error.service, error.attempts
    if isinstance(error, BreakerOpen):
        detail = f"{name} fails too often: it gets no requests for a while."
        return Fault(503, detail, "service", retry_after_s=error.retry_after_s, attempts=attempts)
    if isinstance(error, NoInstance | BudgetExhausted | NotSent):
        detail = f"{name} cannot be reached."
        if isinstance(error, NoInstance):
            detail = f"{name} has no live instance."
        elif isinstance(error, BudgetExhausted):
            detail = f"{name} cannot be reached, and its retry budget is spent."
        return Fault(503, detail, "service", retry_after_s=RETRY_AFTER_S, attempts=attempts)
    if isinstance(error, ResponseTimeout) or (isinstance(error, DeadlineExceeded) and error.sent):
        detail = f"{name} did not answer in time; the request may have run."
        return Fault(504, detail, "service", attempts=attempts)
    if isinstance(error, DeadlineExceeded):
        return Fault(504, f"There was no time left to call {name}.", attempts=attempts)
    return Fault(
        502, f"{name} gave no complete answer; the request may have run.", "service", attempts=attempts
    )
