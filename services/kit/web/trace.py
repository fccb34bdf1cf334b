"""Request ids and W3C trace context: taken over when well-formed, made when not.

Ref: https://www.w3.org/TR/trace-context/ (version 00).
"""

from __future__ import annotations

import os
import re

_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{16,64}", re.ASCII)
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:$)", re.ASCII)
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16


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
