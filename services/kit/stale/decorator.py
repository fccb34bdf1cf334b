"""`@stale_if_error`: a view's good answers are kept in Redis, so that a gateway can give the last one when no instance is left.

    @app.get("/api/things/<thing_id>")
    @stale_if_error(stale_s=3600, scope="public")
    def get_thing(path: ThingPath): ...

Keeping costs the request microseconds: one thread writes, from a bounded queue whose newest entries are dropped when it is full.
The same queue publishes the changes that this instance has made to the gateways, so that they forget what they keep of those paths.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import structlog
from flask import Flask, Response, current_app, request

from services.kit.stale import stored_form
from services.kit.stale.writer import Keep, Remove, StaleQueue
from services.kit.web.context import current

log = structlog.get_logger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
Scope = Literal["public", "subject"]

MAX_BODY_BYTES = 256 * 1024
MAX_STALE_S = 7 * 86_400.0
# How old the answer may be that a gateway gives while no instance is left, where a view does not say.
STALE_S = 3600.0
# The same answer is not written again before this, nor before a quarter of its time.
AGAIN_S = 5.0
REMEMBERED = 4096
GONE = frozenset({403, 404, 410})
# Of these the answer is at hand, also where the reader has it and gets 304.
WHOLE = frozenset({200, 304})
# What a last good answer needs; the rest is about one exchange, or one instance.
KEPT_HEADERS = frozenset({"content-type", "content-language", "etag", "last-modified", "link"})
_MARK = "__kit_stale_if_error__"


@dataclass(frozen=True, slots=True)
class Policy:
    """`stale_s`: how old a kept answer may be when it is given."""

    stale_s: float
    scope: Scope


def stale_if_error(*, scope: Scope, stale_s: float = STALE_S) -> Callable[[F], F]:
    """Decorator of a GET view, below the route's and `require_scope`: keep its answers (status 200, to 256 KiB), to be given for `stale_s` seconds.

    What werkzeug's `make_conditional` has made a 304 is kept as well: the answer is whole in it. A view's own 304 changes nothing.
    `public` is given to every caller: only for views that ask for no token. `subject` is given to the subject of the verified token
    that the answer was for, while its token has the scopes that that one had. An answer 403, 404 or 410 takes away what is kept;
    so do `kit().stale.forget` and `forget_subject`; a DELETE what is kept of its path and below it, for all. Never kept:
    `no-store`, cookies, streams, and in scope `public` what is `private`, or was asked for with a token, a cookie or an
    `X-Api-Key`. Raises ValueError.
    """
    if scope not in ("public", "subject") or not 0 < stale_s <= MAX_STALE_S:
        raise ValueError(f"no stale answer of scope {scope!r} for {stale_s} s")
    policy = Policy(float(stale_s), scope)

    def decorate(view: F) -> F:
        setattr(view, _MARK, policy)
        return view

    return decorate


class StaleAnswers:
    """The stored answers of one service. Does nothing without Redis. Safe for threads."""

    def __init__(self, service: str, queue: StaleQueue | None) -> None:
        self._service = service
        self._queue = queue
        # Name → when this process last wrote the answer, and which.
        self._written: dict[str, tuple[float, int]] = {}
        self._warned: set[str] = set()

    def forget(self, path: str) -> None:
        """Nothing is to be kept of this path (as in `request.path`) for every caller: call it after the commit that removed it."""
        self._forget(stored_form.public_key(self._service, _plain(path)))

    def forget_subject(self, subject: str) -> None:
        """Nothing is to be kept for this subject: its account has gone, or what it may see has changed."""
        self._forget(stored_form.subject_key(self._service, subject))

    def _forget(self, key: str) -> None:
        if self._queue is not None:
            self._queue.forget(key)
            self._written.clear()

    def publish(self, plain: str, *, prefix: bool) -> None:
        """Publish to the gateways that what they keep of this path (as in PATH_INFO) holds no more. Not what is kept in Redis."""
        if self._queue is not None:
            self._queue.change(self._service, stored_form.Change(plain, prefix))

    def look_at(self, policy: Policy, response: Response) -> None:
        """Keep a good answer, or take away what is kept when there is none any more."""
        gone = response.status_code in GONE
        if self._queue is None or request.method != "GET" or not (gone or response.status_code in WHOLE):
            return
        name = self._name(policy)
        if name is None:
            return
        if gone:
            self._written.pop(name.whole, None)
            self._queue.put(Remove(name))
        elif not (response.is_streamed or response.direct_passthrough):
            self._keep(self._queue, policy, name, response)

    def _name(self, policy: Policy) -> stored_form.StaleName | None:
        subject = None
        if policy.scope == "subject":
            subject = current().subject
            if subject is None:
                return None
        environ = request.environ
        return stored_form.stale_name(
            self._service, environ.get("PATH_INFO", ""), environ.get("QUERY_STRING", ""), subject
        )

    def _may_keep(self, policy: Policy, response: Response) -> bool:
        headers = response.headers
        if any(name in headers for name in ("Set-Cookie", "Content-Encoding", "Content-Range")):
            return False
        control = headers.get("Cache-Control", "").lower()
        vary = {name.strip().lower() for name in headers.get("Vary", "").split(",")} - {"", "accept-encoding"}
        if policy.scope == "subject":
            vary.discard("authorization")
        elif current().subject is not None or "private" in control:
            self._warn("what a token was asked for is not kept for every caller")
            return False
        elif "HTTP_COOKIE" in request.environ or "HTTP_X_API_KEY" in request.environ:
            return False
        return not vary and "no-store" not in control

    def _keep(
        self, queue: StaleQueue, policy: Policy, name: stored_form.StaleName, response: Response
    ) -> None:
        body = response.get_data()
        # A view that answers 304 by itself has no answer to be kept.
        if len(body) > MAX_BODY_BYTES or (response.status_code == 304 and not body):
            return
        written, now = (time.monotonic(), hash(body)), time.time()
        before = self._written.get(name.whole)
        if before and before[1] == written[1] and written[0] - before[0] < min(AGAIN_S, policy.stale_s / 4):
            return
        if not self._may_keep(policy, response):
            return
        head = {
            "status": 200,
            "headers": [(key, value) for key, value in response.headers if key.lower() in KEPT_HEADERS],
            "at": now,
            "stale_s": policy.stale_s,
            "scopes": sorted(current().scopes) if policy.scope == "subject" else [],
        }
        if queue.put(Keep(name, head, body, policy.stale_s)):
            if len(self._written) >= REMEMBERED:
                self._written.clear()
            self._written[name.whole] = written

    def _warn(self, event: str) -> None:
        route = request.url_rule.rule if request.url_rule is not None else ""
        if route not in self._warned:
            self._warned.add(route)
            log.warning(event, route=route)


def _plain(path: str) -> str:
    """`request.path` is text; on the wire, and in PATH_INFO, it was UTF-8."""
    return path.encode("utf-8", "surrogatepass").decode("latin-1")


WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def install(app: Flask, *, routed: bool) -> None:
    """Look at every request of the application: views whose answers are kept, and, where the edge leads to it, what was changed."""

    def after(response: Response) -> Response:
        stale: StaleAnswers = current_app.extensions["kit"].stale
        found: Policy | None = getattr(app.view_functions.get(request.endpoint or ""), _MARK, None)
        if request.method in WRITES:
            if routed and response.status_code < 400:
                # What is below goes with it.
                stale.publish(request.environ.get("PATH_INFO", ""), prefix=request.method == "DELETE")
        elif found is not None:
            stale.look_at(found, response)
        return response

    app.after_request(after)
