"""What every view does with the things of its service: 404, the body of an answer, 304 and 412; and how OpenAPI describes it."""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

from flask import Response, current_app, request
from pydantic import BaseModel, ConfigDict, model_validator
from werkzeug.http import generate_etag

from services.kit.web.paging import Shown
from services.kit.web.problems import Problem

T = TypeVar("T")
S = TypeVar("S", bound=Shown)


def found(thing: T | None, kind: str) -> T:
    """The thing itself. Raises Problem 404 where there is none."""
    if thing is None:
        raise Problem(404, detail=f"There is no such {kind}.")
    return thing


def body_of(thing: Shown) -> dict[str, Any]:
    """The body of an answer that is one thing."""
    return {"data": thing.to_json()}


def conditional(body: dict[str, Any], cache_control: str) -> Response:
    """The body as JSON with its ETag, or 304 without it when `If-None-Match` names that tag. Raises Problem 412."""
    response = Response(_encoded(body), mimetype="application/json")
    response.headers["Cache-Control"] = cache_control
    response.add_etag()
    response.make_conditional(request)
    # werkzeug adds one; the server writes its own.
    response.headers.pop("Date", None)
    if response.status_code == 412:
        raise changed_meanwhile()
    return response


def require_match(body: dict[str, Any]) -> None:
    """Let a change through if the client names the current state in `If-Match`, or sends none. Raises Problem 412.

    A weak tag counts too: HAProxy weakens the tag of an answer that it compresses, and the client knows no other.
    """
    if "If-Match" in request.headers:
        tag = generate_etag(_encoded(body))
        if not request.if_match.contains_weak(tag):
            raise changed_meanwhile()


def found_unchanged(thing: S | None, kind: str) -> S:
    """The thing itself, for a change by a client that knows its state (`require_match`). Raises Problem 404, 412."""
    known = found(thing, kind)
    require_match(body_of(known))
    return known


def changed_meanwhile() -> Problem:
    """412 for a change of a state that is no longer there."""
    return Problem(412, detail="This has changed since you read it: read it again.")


def _encoded(body: dict[str, Any]) -> bytes:
    return current_app.json.dumps(body).encode()


def _asks_for_one(schema: dict[str, Any]) -> None:
    given: dict[str, Any] = {"not": {"type": "null"}}
    schema["anyOf"] = [{"required": [name], "properties": {name: given}} for name in schema["properties"]]


class ChangeBody(BaseModel):
    """Body of a PATCH: at least one field; what is left out, or null, stays."""

    model_config = ConfigDict(json_schema_extra=_asks_for_one)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.values():
            raise ValueError("give at least one field to change")
        return self

    def values(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


# The shapes of answers, for the OpenAPI document. They describe what goes out, and are not run.


class One(BaseModel, Generic[T]):
    """A single thing."""

    data: T


class PageInfo(BaseModel):
    """`nextCursor` is the `cursor` of the next page; null on the last one."""

    limit: int
    nextCursor: str | None  # noqa: N815 - the wire's spelling


class Many(BaseModel, Generic[T]):
    """A page of a list."""

    data: list[T]
    page: PageInfo


NOTHING: dict[Any, Any] = {204: None}


def read(model: type[BaseModel]) -> dict[Any, Any]:
    """What a conditional GET answers: the thing, or 304 for a reader that has it."""
    return {200: model, 304: None}
