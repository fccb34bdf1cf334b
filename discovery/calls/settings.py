"""What a ServiceClient is set to."""

from __future__ import annotations

from dataclasses import dataclass, field

from discovery.balancing.ejection import OutlierSettings
from discovery.resilience.breaker import BreakerSettings
from discovery.resilience.retry import RetrySettings


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Times in seconds. `deadline_s` is for a whole call that names none; `attempt_timeout_s` for the head of one answer.

    A call that may run twice gives an attempt at most half of the time left while another could follow, so that one hung
    instance does not use up the deadline. `patience_s`: a caller that gave less than this says nothing about the upstream.
    """

    deadline_s: float = 15.0
    attempt_timeout_s: float = 5.0
    connect_timeout_s: float = 0.5
    stream_idle_s: float = 60.0
    patience_s: float = 0.5
    connections: int = 16
    max_body_bytes: int = 32 * 1024 * 1024
    retry: RetrySettings = field(default_factory=RetrySettings)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    outlier: OutlierSettings = field(default_factory=OutlierSettings)
