"""Where a client reports what it does; metrics hang here, so that this library depends on none."""

from __future__ import annotations

from discovery.resilience.breaker import Transition


class Observer:
    """Override what is of interest. Called on the caller's thread: be short, and do not raise.

    `outcome` is `1xx` … `5xx`, or the name of an error class of `discovery.errors`; `error` for a caller's mistake.
    """

    def on_call(self, service: str, method: str, outcome: str, attempts: int, duration_s: float) -> None:
        """A call is over (a streamed one: its head is there)."""

    def on_attempt(
        self, service: str, instance_id: str, outcome: str, attempt: int, duration_s: float
    ) -> None:
        """One attempt is over; `attempt` counts from 1."""

    def on_ejected(self, service: str, instance_id: str, duration_s: float) -> None:
        """An instance is ejected for `duration_s`."""

    def on_breaker(self, service: str, state: str) -> None:
        """A breaker is now `closed`, `open` or `half-open`."""

    def on_transition(self, service: str, transition: Transition) -> None:
        """How a breaker's state changed, and why. Called within the breaker's lock."""
        self.on_breaker(service, transition.state)
