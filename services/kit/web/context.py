"""The caller and its deadline: the state of one request, reachable from anywhere below it."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

NOBODY: frozenset[str] = frozenset()


@dataclass(slots=True)
class Caller:
    """One request, as the kit knows it.

    `subject` is None until `require_scope` has verified a token. `deadline` is a point on `time.monotonic()`.
    `by_key` tells that the token was made from an API key. `traceparent` is this request's own span, to be passed on; `route` the matched template (for metrics and logs).
    """

    request_id: str = ""
    traceparent: str = ""
    deadline: float = field(default_factory=lambda: time.monotonic() + 30.0)
    subject: str | None = None
    scopes: frozenset[str] = NOBODY
    by_key: bool = False
    route: str | None = None

    def remaining_s(self) -> float:
        """Seconds until the deadline, never below zero."""
        return max(0.0, self.deadline - time.monotonic())

    def has(self, scope: str) -> bool:
        """Whether the verified token carries the scope."""
        return scope in self.scopes


_CALLER: ContextVar[Caller | None] = ContextVar("kit_caller", default=None)


def current() -> Caller:
    """The request being served; outside of one, an anonymous caller with 30 s."""
    return _CALLER.get() or Caller()


def set_current(caller: Caller | None) -> None:
    """Make `caller` the current one of this thread or greenlet."""
    _CALLER.set(caller)


def peek() -> Caller | None:
    """The request being served, or None outside of one."""
    return _CALLER.get()
