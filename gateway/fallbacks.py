"""What is answered when the service cannot be: by a policy that belongs to the domain.

identity and business: the last good answer that the caller may have, one for everybody or his own; else business adds to its 503
what is known. ai: OpenAI's error object. A write is never answered as if it had happened. Overload is refused at once: a look
into Redis for each refusal would cost as much as the refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from discovery.errors import DeadlineExceeded, ResponseLost
from gateway.errors import Overloaded
from gateway.model import Answer, Incoming
from gateway.problems import Problems

LastGood = Callable[[Incoming], Answer | None]


class Fallbacks:
    """`last_good` finds the last good answer to a request: its own caller's, or a public one."""

    def __init__(self, problems: Problems, last_good: LastGood | None = None) -> None:
        self._problems = problems
        self._last_good = last_good

    def of_error(self, incoming: Incoming, error: Exception) -> Answer:
        """The answer to a request whose call failed."""
        stale = None if isinstance(error, Overloaded) else self._stale(incoming)
        return stale or self._problems.of(incoming, error, _degraded(incoming, error))

    def of_answer(self, incoming: Incoming, answer: Answer) -> Answer:
        """The answer to a request that the service answered with a failure of its own: something better, or that."""
        stale = self._stale(incoming)
        if stale is None:
            return answer
        answer.close()
        return stale

    def _stale(self, incoming: Incoming) -> Answer | None:
        if not incoming.reads or self._last_good is None or incoming.domain == "ai":
            return None
        answer = self._last_good(incoming)
        return answer.with_headers(("Cache-Control", "no-store")) if answer is not None else None


def _degraded(incoming: Incoming, error: Exception) -> dict[str, Any] | None:
    """What business adds to a problem: that it is not the whole truth, and as much of it as is known."""
    if incoming.domain != "business":
        return None
    if incoming.reads:
        return {"degraded": True, "known": {"stored_answer": False}}
    sent = isinstance(error, ResponseLost) or (
        isinstance(error, DeadlineExceeded | Overloaded) and error.sent
    )
    return {"degraded": True, "known": {"done": "unknown" if sent else False}}
