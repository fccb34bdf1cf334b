"""How one part of a composed answer went, and what that means for the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from discovery.errors import CallError, NoInstance
from gateway.errors import GatewayError
from gateway.model import Headers, first
from gateway.problems import RETRY_AFTER_S, fault_of

# absent: no such service is there. unavailable: nothing was sent, or no instance could be reached. refused: a 4xx.
# failed: a 5xx, or an answer that broke off. invalid: an answer that cannot be used. cancelled: not waited for.
State = Literal[
    "ok", "stale", "fallback", "absent", "unavailable", "timeout", "refused", "failed", "invalid", "cancelled"
]

# What a service says about the request itself passes on from a part that is required.
PASSED_ON = frozenset({401, 403, 404, 410, 429, 503, 504})
_STATUS_OF: dict[State, int] = {"absent": 503, "unavailable": 503, "timeout": 504}


@dataclass(frozen=True, slots=True)
class Result:
    """One part. `data` is its JSON text, None when there is none; `upstream_status` what its service answered, if it did.

    `source` is `live` (the service), `cache`, `stale`, `declaration` or None; `headers` those of the service's answer.
    """

    name: str
    service: str
    state: State
    data: bytes | None = None
    source: str | None = None
    age_s: int = 0
    attempts: int = 0
    reason: str | None = None
    upstream_status: int | None = None
    headers: Headers = field(default_factory=list)
    cached: str | None = None
    retry_after_s: float = 1.0

    @property
    def usable(self) -> bool:
        return self.data is not None

    @property
    def answer_status(self) -> int:
        """The status of an answer that is missing this part and needs it."""
        if self.upstream_status in PASSED_ON:
            return self.upstream_status or 502
        return _STATUS_OF.get(self.state, 502)

    def header(self, name: str) -> str | None:
        """The first value of a header of the service's answer; `name` in lower case."""
        return first(self.headers, name)

    def describe(self) -> dict[str, Any]:
        """What the client learns about the part."""
        found: dict[str, Any] = {
            "status": self.state,
            "source": self.source,
            "age": self.age_s,
            "attempts": self.attempts,
        }
        if self.upstream_status not in (None, 200):
            found["upstream_status"] = self.upstream_status
        if self.reason is not None:
            found["reason"] = self.reason
        return found


def describe_failure(name: str, service: str, error: CallError | GatewayError, *, absent: bool) -> Result:
    """A call that brought no answer, in the words of `gateway.problems`: they name no addresses. `absent`: the service has no
    instance."""
    fault = fault_of(error)
    state: State = "timeout" if fault.status == 504 else "unavailable" if fault.status == 503 else "failed"
    if isinstance(error, NoInstance) and absent:
        state = "absent"
    reason, retry_after_s = fault.detail.rstrip("."), fault.retry_after_s or RETRY_AFTER_S
    return Result(name, service, state, attempts=fault.attempts, reason=reason, retry_after_s=retry_after_s)
