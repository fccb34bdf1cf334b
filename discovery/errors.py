"""What can go wrong in discovery, divided by what a caller may do about it.

    DiscoveryError
    ├── ContractError          a registration, metadata value or name is not allowed
    ├── ConsulError            talking to Consul failed; the last good state still stands
    │   ├── ConsulUnreachable    no connection, or no answer in time
    │   ├── ConsulRefused        Consul answered with an error status
    │   └── ConsulMalformed      Consul answered with something that is no answer
    └── CallError              a call through ServiceClient gave no answer
        ├── NotSent              nothing reached an instance: may be retried, whatever the method
        │   ├── NoInstance         the view knows no instance of the service
        │   ├── BreakerOpen        the service's breaker let nothing through
        │   ├── BudgetExhausted    the retry budget is spent
        │   └── ConnectFailed      the connection was refused or timed out
        ├── ResponseLost         sent, no whole answer: may have run; only idempotent calls are retried
        │   └── ResponseTimeout    the instance did not answer in time
        ├── AnswerTooLarge       more than the caller would hold; it would be as long again
        └── DeadlineExceeded     the time for the whole call is over; `sent` says whether something went out

Ref: the division by "may the request have run" is urllib3's (NewConnectionError against ProtocolError).
"""

from __future__ import annotations


class DiscoveryError(Exception):
    """Root of every error that this library raises on purpose."""


class ContractError(DiscoveryError):
    """A value breaks the contract. `field` names it, `value` is what was given, `reason` says what is wrong."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        self.field = field
        self.value = value
        self.reason = reason
        super().__init__(f"{field}={str(value)[:120]!r}: {reason}")


class ConsulError(DiscoveryError):
    """Consul could not be asked, or gave no usable answer."""


class ConsulUnreachable(ConsulError):
    """No connection to the agent, or no answer within the timeout."""


class ConsulRefused(ConsulError):
    """Consul answered with an error status (`status`), for example 403 for a token without the right."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(f"Consul answered {status}: {text[:200]}")


class ConsulMalformed(ConsulError):
    """Consul's answer is not of the documented shape."""


class CallError(DiscoveryError):
    """A call got no answer. `service` is the upstream, `attempts` how many tries were made, `instance_id` the last one tried.

    `neutral`: it says nothing about the upstream, for its caller would not wait, or asked for what cannot be had.
    """

    neutral = False

    def __init__(
        self, service: str, detail: str = "", *, attempts: int = 0, instance_id: str | None = None
    ) -> None:
        self.service = service
        self.detail = detail
        self.attempts = attempts
        self.instance_id = instance_id
        super().__init__(f"{service}: {detail or type(self).__name__} (attempts: {attempts})")


class NotSent(CallError):
    """No instance has seen the request."""


class NoInstance(NotSent):
    """The view knows no instance that could take the call."""


class BreakerOpen(NotSent):
    """The breaker is open. `retry_after_s` is the time until it lets a trial through."""

    def __init__(self, service: str, *, retry_after_s: float, attempts: int = 0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(service, f"breaker open for {retry_after_s:.1f} s more", attempts=attempts)


class BudgetExhausted(NotSent):
    """A retry was due and allowed, but the retry budget is spent."""


class ConnectFailed(NotSent):
    """The connection was refused, reset before anything was written, or not made in time."""


class ResponseLost(CallError):
    """The request went out and no whole answer came back: it may have run."""


class ResponseTimeout(ResponseLost):
    """The instance did not answer in the time it was given."""


class AnswerTooLarge(CallError, ValueError):
    """The body is longer than the limit for answers that are read whole. Says nothing about the instance's health."""


class DeadlineExceeded(CallError):
    """The deadline of the whole call has passed."""

    def __init__(
        self, service: str, *, sent: bool, attempts: int = 0, instance_id: str | None = None
    ) -> None:
        self.sent = sent
        super().__init__(service, "deadline exceeded", attempts=attempts, instance_id=instance_id)
