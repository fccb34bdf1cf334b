"""Errors as answers: problem+json, or OpenAI's error object under /v1 and /chat. The one place where that is decided."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
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
    ResponseTimeout,
)
from discovery.http.body import BodyFailed
from gateway.errors import GatewayError, LimitExceeded, Overloaded, PartFailed, Refused, RouteUnknown
from gateway.model import Answer, Headers, Incoming

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
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
    """What an error means to who asked. `failed` is the layer that failed: `gateway` or `service`."""

    status: int
    detail: str
    failed: str
    code: str
    retry_after_s: float | None = None
    attempts: int = 0
    headers: tuple[tuple[str, str], ...] = ()


class Problems:
    """Turns errors into answers. `breaker` tells the state of a service's breaker."""

    def __init__(self, gateway: str, breaker: Callable[[str], str]) -> None:
        self._gateway = gateway
        self._breaker = breaker

    def answer(
        self,
        error: Exception,
        *,
        path: str,
        request_id: str,
        service: str = "",
        openai: bool = False,
        members: dict[str, Any] | None = None,
    ) -> Answer:
        """The answer to an error. `service` is the upstream concerned; `members` are added to the problem object."""
        fault = fault_of(error)
        if isinstance(error, Refused):
            members = {**error.members, **(members or {})}
        if fault.status >= 500 and not isinstance(error, GatewayError | CallError | ValueError):
            log.error("request failed", upstream=service, error=type(error).__name__, exc_info=error)
        if openai:
            kind, data = "application/json", self.openai(error)
        else:
            kind, data = MEDIA_TYPE, self._object(fault, path, request_id, service, members or {})
        headers: Headers = [
            ("Content-Type", kind),
            ("Cache-Control", "no-store"),
            ("Content-Length", str(len(data))),
            *fault.headers,
        ]
        if fault.retry_after_s is not None:
            headers.append(("Retry-After", str(max(1, math.ceil(fault.retry_after_s)))))
        return Answer(fault.status, headers, data, attempts=fault.attempts)

    def _object(
        self, fault: Fault, path: str, request_id: str, service: str, members: dict[str, Any]
    ) -> bytes:
        body = {
            **members,
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
        }
        if service:
            body["breaker"] = self._breaker(service)
        return to_json(body)

    def openai(self, error: Exception) -> bytes:
        """OpenAI's error object, as JSON on one line."""
        fault = fault_of(error)
        return to_json({"error": openai_error(fault.status, fault.detail, fault.code)})

    def of(self, incoming: Incoming, error: Exception, members: dict[str, Any] | None = None) -> Answer:
        """The answer to an error of a request that got as far as being one."""
        return self.answer(
            error,
            path=incoming.path,
            request_id=incoming.request_id,
            service=incoming.service if incoming.route is not None else getattr(error, "service", ""),
            openai=incoming.openai,
            members=members,
        )


def fault_of(error: Exception) -> Fault:
    """What is to be said about an error."""
    if isinstance(error, CallError):
        return _call_fault(error)
    if isinstance(error, LimitExceeded):
        return Fault(
            429,
            "You have asked too often.",
            "gateway",
            "rate_limit_exceeded",
            error.retry_after_s,
            headers=tuple(error.headers),
        )
    if isinstance(error, Overloaded):
        detail = (
            "The gateway has too much to do." if error.scope == "group" else "The service has too much to do."
        )
        return Fault(503, detail, "gateway", "overloaded", error.retry_after_s)
    if isinstance(error, RouteUnknown):
        return Fault(404, error.detail, "gateway", "not_found")
    if isinstance(error, Refused):
        return _refused_fault(error)
    if isinstance(error, GatewayError):
        return Fault(503, error.detail, "gateway", "service_unavailable", error.retry_after_s)
    if isinstance(error, BodyFailed):
        cause = error.__cause__
        if isinstance(cause, Refused):
            return fault_of(cause)
        return Fault(400, "The body is not whole.", "gateway", "invalid_request")
    if isinstance(error, ValueError):
        return Fault(400, "The request cannot be passed on as it is.", "gateway", "invalid_request")
    return Fault(500, "The gateway failed to process the request.", "gateway", "internal_error")


def _refused_fault(error: Refused) -> Fault:
    failed = "service" if isinstance(error, PartFailed) and error.status >= 500 else "gateway"
    return Fault(
        error.status,
        error.detail,
        failed,
        _CODES.get(error.status, "invalid_request"),
        error.retry_after_s if error.status == 503 and not _names(error.headers, "retry-after") else None,
        error.attempts if isinstance(error, PartFailed) else 0,
        headers=tuple(error.headers),
    )


def _names(headers: Headers, name: str) -> bool:
    return any(each.lower() == name for each, _ in headers)


def _call_fault(error: CallError) -> Fault:
    name, attempts = error.service, error.attempts
    if isinstance(error, BreakerOpen):
        detail = f"{name} fails too often: it is left alone for a while."
        return Fault(503, detail, "service", "service_unavailable", error.retry_after_s, attempts)
    if isinstance(error, NoInstance):
        return Fault(
            503, f"{name} has no live instance.", "service", "service_unavailable", RETRY_AFTER_S, attempts
        )
    if isinstance(error, BudgetExhausted):
        detail = f"{name} cannot be reached, and too much has been tried again already."
        return Fault(503, detail, "service", "service_unavailable", RETRY_AFTER_S, attempts)
    if isinstance(error, NotSent):
        return Fault(
            503, f"{name} cannot be reached.", "service", "service_unavailable", RETRY_AFTER_S, attempts
        )
    if isinstance(error, ResponseTimeout) or (isinstance(error, DeadlineExceeded) and error.sent):
        detail = f"{name} did not answer in time; the request may have run."
        return Fault(504, detail, "service", "gateway_timeout", attempts=attempts)
    if isinstance(error, DeadlineExceeded):
        return Fault(
            504, f"There was no time left to ask {name}.", "gateway", "gateway_timeout", attempts=attempts
        )
    return Fault(
        502,
        f"{name} gave no whole answer; the request may have run.",
        "service",
        "bad_gateway",
        attempts=attempts,
    )


def openai_error(status: int, message: str, code: str) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = _KINDS.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "param": None, "code": code}


def phrase(status: int) -> str:
    """The reason phrase of a status; `Error` for one that nobody has named."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
