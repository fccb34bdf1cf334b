"""What a client remembers of one service that it calls, and whom it may send a call to."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from discovery.balancing.balancer import Balancer, candidates, is_backup, usable
from discovery.balancing.ejection import Identity, Outliers, OutlierSettings, identity
from discovery.calls.observer import Observer
from discovery.clock import Clock
from discovery.model import Instance
from discovery.resilience.breaker import Breaker, BreakerSettings
from discovery.resilience.latency import Latencies
from discovery.resilience.retry import RetryBudget, RetrySettings


class Upstream:
    """Thread-safe, as all of its parts are."""

    def __init__(
        self,
        service: str,
        *,
        retry: RetrySettings,
        breaker: BreakerSettings,
        outlier: OutlierSettings,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self.balancer = Balancer(clock)
        self.outliers = Outliers(outlier, clock)
        self.budget = RetryBudget(retry, clock)
        self.latencies = Latencies()
        self.breaker = Breaker(service, breaker, clock, observer.on_transition)
        # (what a snapshot had, the usable of them, whether a backup is among those)
        self._sifted: tuple[Sequence[Instance], list[Instance], bool] = ((), [], False)

    def usable(self, instances: Sequence[Instance]) -> list[Instance]:
        """As `balancer.usable`, found out once for each snapshot."""
        return self._sift(instances)[1]

    def group(self, instances: Sequence[Instance], shunned: Collection[Identity]) -> list[Instance]:
        """Whom to pick from: the best group that is not empty (see `candidates`); empty when nobody can take a call."""
        _, found, backups = self._sift(instances)
        ejected = self.outliers.ejected()
        if not (backups or ejected or shunned):
            return found
        return candidates(found, ejected, shunned)

    def another_works(self, instances: Sequence[Instance], shunned: Collection[Identity]) -> bool:
        """Whether somebody is left who is not shunned, and was never ejected or has answered since."""
        out = self.outliers.unproven().union(shunned)
        return any(identity(each) not in out for each in self.usable(instances))

    def _sift(self, instances: Sequence[Instance]) -> tuple[Sequence[Instance], list[Instance], bool]:
        sifted = self._sifted
        if sifted[0] is not instances:
            found = usable(instances)
            sifted = self._sifted = (instances, found, any(map(is_backup, found)))
        return sifted
