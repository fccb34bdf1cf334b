"""Every error of a service leaves as RFC 9457 `application/problem+json`, and never with a traceback."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from flask import Flask, Response, request
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json
from redis.exceptions import (
    DataError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

from discovery.errors import CallError, DeadlineExceeded, NotSent, ResponseTimeout
from services.kit.db.session import passes
from services.kit.web.context import current

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
BUSY_RETRY_AFTER_S = 1
# Refusals of a Redis that is full, or not the master at the moment.
REFUSED_FOR_NOW = (MasterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError)


class Problem(Exception):
    """An answer by exception. `members` become members of the problem object; `headers` go out with it.

    `title` defaults to the status's phrase, `type` to `about:blank`, as RFC 9457 asks.
    """

    def __init__(
        self,
        status: int,
        title: str | None = None,
        detail: str | None = None,
        type: str | None = None,  # noqa: A002 - the name that the RFC gives it
        *,
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> None:
        self.status = status
        self.title = title or phrase(status)
        self.detail = detail
        self.type = type or "about:blank"
        self.headers = headers or {}
        self.members = members
        super().__init__(f"{status} {self.title}: {detail}" if detail else f"{status} {self.title}")


class ProblemModel(BaseModel):
    """The problem object, for OpenAPI."""

    model_config = ConfigDict(extra="allow", title="Problem")

    type: str = "about:blank"
    title: str
    status: int
    detail: str | None = None
    instance: str
    request_id: str
    layer: str = "service"
    service: str


def phrase(status: int) -> str:
    """The reason phrase of a status; `Error` for one without a name."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def render(problem: Problem, service: str) -> Response:
    """The HTTP answer to a problem, in the shape of the contract."""
    body = {
        **problem.members,
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": request.script_root + request.path,
        "request_id": current().request_id,
        "layer": "service",
        "service": service,
    }
    response = Response(to_json(body, fallback=str), status=problem.status, mimetype=MEDIA_TYPE)
    response.headers["Cache-Control"] = "no-store"
    for name, value in problem.headers.items():
        response.headers[name] = value
    return response


def validation_problem(error: ValidationError) -> Problem:
    """422 with one entry a field; malformed JSON is 400. What was sent is not repeated: it may be a password."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    if errors and errors[0]["type"] == "json_invalid":
        return Problem(400, "Malformed JSON", errors[0]["msg"])
    fields = [{"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in errors[:20]]
    return Problem(422, "Invalid request", f"{len(errors)} invalid value(s)", errors=fields)


def busy(detail: str) -> Problem:
    """503: something that the service needs is busy or away, and asking again soon is worth it."""
    return Problem(503, detail=detail, headers={"Retry-After": str(BUSY_RETRY_AFTER_S)})


def upstream_problem(error: CallError) -> Problem:
    """What a call to another service that gave no answer means for our own caller."""
    if isinstance(error, NotSent):
        return busy(f"{error.service} is away.")
    if isinstance(error, DeadlineExceeded | ResponseTimeout):
        return Problem(504, detail=f"{error.service} gave no answer in time.")
    return Problem(502, detail=f"{error.service} gave no answer.")


def _from_http(error: HTTPException) -> Problem:
    # Werkzeug's own headers carry Allow and Retry-After; its Content-Type is that of an HTML page.
    headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
    return Problem(error.code or 500, detail=error.description, headers=headers)


def problem_of(error: Exception) -> Problem:
    """What leaves for whatever a view, or a method of gRPC, has raised. What is no Problem itself has a line in the log."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, PoolTimeout) or (isinstance(error, DBAPIError) and passes(error)):
        log.warning("database unavailable", error=type(error).__name__, reason=str(error)[:200])
        return busy("The database is busy.")
    # Another answer of Redis than these will be the same again.
    refused = isinstance(error, ResponseError | DataError) and not isinstance(error, REFUSED_FOR_NOW)
    if isinstance(error, RedisError) and not refused:
        log.warning("redis unavailable", error=type(error).__name__, reason=str(error)[:200])
        return busy("A store that this needs is away.")
    if isinstance(error, CallError):
        log.warning("upstream failed", upstream=error.service, error=type(error).__name__, reason=str(error))
        return upstream_problem(error)
    log.error("request failed", error=type(error).__name__, exc_info=error)
    return Problem(500)


def install(app: Flask, service: str) -> None:
    """Register the handlers that turn whatever a view raises into a problem."""

    def on_http(error: HTTPException) -> Any:
        if error.response is not None or (error.code or 500) < 400:
            return error
        return render(_from_http(error), service)

    app.register_error_handler(HTTPException, on_http)
    app.register_error_handler(Exception, lambda error: render(problem_of(error), service))
