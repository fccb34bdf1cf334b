"""Conditional answers: 304 for a reader who has it already, 412 for a writer who has seen another state."""

from __future__ import annotations

from typing import Any

from flask import Response, current_app, request

from services.kit.web.etag import entity_tag, names_tag
from services.kit.web.problems import Problem


def conditional(body: dict[str, Any], cache_control: str) -> Response:
    """The body as JSON with its ETag, or 304 without it when `If-None-Match` names that tag."""
    data = _encoded(body)
    tag = entity_tag(data)
    response = Response(data, mimetype="application/json")
    if request.method in ("GET", "HEAD") and names_tag(request.headers.get("If-None-Match"), tag):
        response = Response(status=304)
    response.headers["ETag"] = tag
    response.headers["Cache-Control"] = cache_control
    return response


def require_match(body: dict[str, Any]) -> None:
    """Let a change through if the client names the current state in `If-Match`, or does not care. Raises Problem 412."""
    wanted = request.headers.get("If-Match")
    if wanted is not None and not names_tag(wanted, entity_tag(_encoded(body))):
        raise Problem(412, detail="This has changed since you read it: read it again.")


def _encoded(body: dict[str, Any]) -> bytes:
    return current_app.json.dumps(body).encode()
