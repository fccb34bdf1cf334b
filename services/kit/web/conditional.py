"""Conditional answers: 304 for a reader that has the answer already, 412 for a writer that has seen another state."""

from __future__ import annotations

from typing import Any

from flask import Response, current_app, request
from werkzeug.http import generate_etag

from services.kit.web.problems import Problem


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


def changed_meanwhile() -> Problem:
    """412 for a change of a state that is no longer there."""
    return Problem(412, detail="This has changed since you read it: read it again.")


def _encoded(body: dict[str, Any]) -> bytes:
    return current_app.json.dumps(body).encode()
