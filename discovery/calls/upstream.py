"""What a client is set to, and what it remembers of one service that it calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from discovery.balancing.balancer import Balancer, candidates, is_backup, usable
from discovery.balancing.ejection import Identity, Outliers, OutlierSettings, identity
from discovery.calls.instrumentation import Observer
from discovery.clock import Clock
from discovery.model import Instance
from discovery.resilience.breaker import Breaker, BreakerSettings
from discovery.resilience.retry import RetryBudget, RetrySettings

SAMPLES = 128
# Below this a p95 is one answer's luck.
LEAST = 20


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


class Latencies:
    """The durations of the last successful attempts, in seconds. Thread-safe; memory is bounded by `SAMPLES`."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=SAMPLES)
        self.add = self._last.append

    def quantile(self, quantile: float) -> float | None:
        """The duration that `quantile` (0 to 1) of the attempts stayed within; None while fewer than `LEAST` are known."""
        values = sorted(self._last.copy())
        if len(values) < LEAST:
            return None
        return values[min(len(values) - 1, int(quantile * len(values)))]


class Upstream:
    """One service, seen from here. Thread-safe, as all of its parts are."""

    def __init__(self, service: str, settings: ClientSettings, clock: Clock, observer: Observer) -> None:
        self.balancer = Balancer(clock)
        self.outliers = Outliers(settings.outlier, clock)
        self.budget = RetryBudget(settings.retry, clock)
        self.latencies = Latencies()
        self.breaker = Breaker(service, settings.breaker, clock, observer.on_transition)
        # (what a snapshot had, the usable of them, whether a backup is among those)
        self._sifted: tuple[Sequence[Instance], list[Instance], bool] = ((), [], False)

    def usable(self, instances: Sequence[Instance]) -> list[Instance]:
        """As `balancer.usable`, found out once for each snapshot."""
        return self._sift(instances)[1]

    def group(self, instances: Sequence[Instance], shunned: Collection[Identity]) -> list[Instance]:
        """The instances to pick from: the best group that is not empty (see `candidates`); empty when none can take a call."""
        _, found, backups = self._sift(instances)
        ejected = self.outliers.ejected()
        if not (backups or ejected or shunned):
            return found
        return candidates(found, ejected, shunned)

    def another_works(self, instances: Sequence[Instance], shunned: Collection[Identity]) -> bool:
        """Whether an instance is left that is not shunned, and was never ejected or has answered since."""
        out = self.outliers.unproven().union(shunned)
        return any(identity(each) not in out for each in self.usable(instances))

    def _sift(self, instances: Sequence[Instance]) -> tuple[Sequence[Instance], list[Instance], bool]:
        sifted = self._sifted
        if sifted[0] is not instances:
            found = usable(instances)
            sifted = self._sifted = (instances, found, any(map(is_backup, found)))
        return sifted
