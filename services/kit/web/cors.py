"""Which pages of other origins may read what a service answers (CORS): those that `CORS_ORIGINS` names, and none by default."""

from __future__ import annotations

import re

from flask import Flask, Response, request

from services.kit.settings import ServiceSettings

MAX_AGE_S = 600
# Beside the few that any page may read.
EXPOSED = "ETag, Link, Location, Retry-After, X-Request-ID, X-Cache, X-Stale-Age, RateLimit, RateLimit-Policy"
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~ ,-]{1,1000}", re.ASCII)


def install(app: Flask, settings: ServiceSettings) -> None:
    """Answer preflights and mark answers, if any origin is named. Does nothing otherwise."""
    allowed = frozenset(settings.cors_origins.split(",")) if settings.cors_origins else frozenset()
    if not allowed:
        return

    def mark(response: Response) -> Response:
        if "*" in allowed:
            response.headers["Access-Control-Allow-Origin"] = "*"
        else:
            response.vary.add("Origin")
            origin = request.headers.get("Origin")
            if origin not in allowed:
                return response
            response.headers["Access-Control-Allow-Origin"] = origin
            if settings.cors_credentials:
                response.headers["Access-Control-Allow-Credentials"] = "true"
        response.headers["Access-Control-Expose-Headers"] = EXPOSED
        return response

    def preflight() -> Response | None:
        """Before anything else: a browser sends no credentials along."""
        method = request.headers.get("Access-Control-Request-Method")
        if request.method != "OPTIONS" or not method or request.routing_exception is not None:
            return None
        if "*" not in allowed and request.headers.get("Origin") not in allowed:
            return None
        response = app.make_default_options_response()
        response.status_code = 204
        response.headers["Access-Control-Allow-Methods"] = response.headers["Allow"]
        names = request.headers.get("Access-Control-Request-Headers", "")
        if _HEADER_NAMES.fullmatch(names):
            response.headers["Access-Control-Allow-Headers"] = names
        response.headers["Access-Control-Max-Age"] = str(MAX_AGE_S)
        return response

    app.before_request(preflight)
    app.after_request(mark)
