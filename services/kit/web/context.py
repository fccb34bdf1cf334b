"""The caller and its deadline: the state of one request, reachable from anywhere below it.

Request ids and W3C trace context are taken over when well-formed, and made when not.
Ref: https://www.w3.org/TR/trace-context/ (version 00).
"""

from __future__ import annotations

import os
import re
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

NOBODY: frozenset[str] = frozenset()

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{16,64}", re.ASCII)
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:$)", re.ASCII)
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16


@dataclass(slots=True)
class Caller:
    """One request, as the kit knows it.

    `subject` is None until `require_scope` has verified a token. `deadline` is a point on `time.monotonic()`.
    `by_key`: the token was made from an API key. `traceparent` is this request's own span, to be passed on; `route` the matched template (for metrics and logs).
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


def request_id(given: str | None) -> str:
    """`given` when it is 16–64 of `[A-Za-z0-9-]`, else 32 new hexadecimal digits."""
    if given and _REQUEST_ID.fullmatch(given):
        return given
    return os.urandom(16).hex()


def child_of(traceparent: str | None) -> str:
    """A new span under the caller's trace, or of a new, unsampled trace when `traceparent` is absent or malformed."""
    match = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if match and match[1] != _NO_TRACE and match[2] != _NO_SPAN:
        return f"00-{match[1]}-{os.urandom(8).hex()}-{match[3]}"
    fresh = os.urandom(24).hex()
    return f"00-{fresh[:32]}-{fresh[32:]}-00"


def trace_id(traceparent: str) -> str:
    """The 32 digits of the trace, for log lines."""
    return traceparent[3:35]
