"""The adaptive limit in front of a simulated upstream: workers, a queue, and time that costs nothing."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.limits.concurrency import AdaptiveLimit, ConcurrencySettings
from tests.support.clock import ManualClock

SETTINGS = ConcurrencySettings()


@dataclass(frozen=True)
class Seen:
    """`good` answers and `refused` ones by second, and latency in seconds."""

    good: float
    refused: float
    p50_s: float
    p99_s: float


class Upstream:
    """`workers` that take `work_s` for each request, in front of them a queue, and before that one limit a gateway."""

    def __init__(self, workers: int, work_s: float, *, gateways: int = 1) -> None:
        self.workers = workers
        self.work_s: Callable[[], float] = lambda: work_s
        self.ok = True
        self.random = random.Random(7)
        self.limits = [
            AdaptiveLimit(SETTINGS, ManualClock(chance=0.4 * number)) for number in range(gateways)
        ]
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._number = itertools.count()
        self._queue: deque[tuple[float, int, AdaptiveLimit]] = deque()
        self._busy = 0
        self._latencies: list[float] = []
        self._refused = 0

    @property
    def limit(self) -> AdaptiveLimit:
        return self.limits[0]

    def load(self, per_s: float, seconds: float) -> Seen:
        """Requests that come by chance, `per_s` of them, whatever becomes of them."""
        until = self.now + seconds
        self._latencies, self._refused = [], 0
        self._at(self.now, self._arrive, per_s, until)
        while self._events and self._events[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(self._events)
            action(*arguments)
        self.now = until
        sorted_s = sorted(self._latencies) or [0.0]
        return Seen(
            len(sorted_s) / seconds,
            self._refused / seconds,
            sorted_s[len(sorted_s) // 2],
            sorted_s[int(len(sorted_s) * 0.99)],
        )

    def _at(self, when: float, action: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._number), action, arguments))

    def _arrive(self, per_s: float, until: float) -> None:
        limit = self.random.choice(self.limits)
        if limit.enter(self.now):
            self._queue.append((self.now, limit.probe, limit))
            self._serve()
        else:
            self._refused += 1
        following = self.now + self.random.expovariate(per_s)
        if following < until:
            self._at(following, self._arrive, per_s, until)

    def _serve(self) -> None:
        while self._queue and self._busy < self.workers:
            self._busy += 1
            self._at(self.now + self.work_s(), self._finish, self._queue.popleft())

    def _finish(self, entered: tuple[float, int, AdaptiveLimit]) -> None:
        self._busy -= 1
        began, probe, limit = entered
        limit.leave(began, probe, self.now, ok=self.ok)
        self._latencies.append(self.now - began)
        self._serve()


def test_slow_upstream_keeps_its_whole_capacity_under_twice_its_load() -> None:
    upstream = Upstream(20, 0.02)
    calm = upstream.load(500, 5)
    assert calm.refused == 0
    seen = upstream.load(2000, 30)
    assert seen.good >= 0.98 * 1000
    assert seen.refused >= 900, "twice the load, and nothing was refused"
    # The queue that is borne, the work itself, and the swing of the limit.
    assert seen.p50_s <= 0.16
    assert seen.p99_s <= 0.2


@pytest.mark.long
def test_limit_does_not_creep_up_under_an_overload_of_minutes() -> None:
    upstream = Upstream(20, 0.02)
    upstream.load(2000, 30)
    early = upstream.limit.limit
    late = upstream.load(2000, 300)
    assert upstream.limit.limit <= 1.3 * early
    assert late.p99_s <= 0.2
    assert late.good >= 980


def test_overload_from_the_first_request_is_found_out() -> None:
    """Nothing was ever measured without a queue: the base has to come from a probe."""
    upstream = Upstream(20, 0.02)
    upstream.load(2000, 10)
    assert upstream.limit.base_s is not None
    assert upstream.limit.base_s < 0.06
    assert upstream.load(2000, 20).p50_s <= 0.16


@pytest.mark.parametrize("calm_per_s", [0.01, 30])
def test_queue_of_an_upstream_with_a_low_pace_is_seen_coming(calm_per_s: float) -> None:
    """100 a second: with the limit that all begin with, the last in the queue would wait for 1.3 s."""
    upstream = Upstream(8, 0.08)
    upstream.load(calm_per_s, 10)
    assert upstream.load(200, 3).p99_s <= 0.9
    seen = upstream.load(200, 10)
    assert seen.good >= 98
    assert seen.p99_s <= 0.33


def test_two_gateways_in_front_of_one_upstream_bound_the_queue_together() -> None:
    upstream = Upstream(20, 0.02, gateways=2)
    upstream.load(2000, 20)
    seen = upstream.load(2000, 20)
    assert seen.p50_s <= 0.17
    assert seen.good >= 980
    assert sum(limit.limit for limit in upstream.limits) >= 20


def test_upstream_that_can_do_many_at_once_is_not_throttled() -> None:
    upstream = Upstream(1000, 0.02)
    assert upstream.load(4500, 5).refused == 0
    assert upstream.limit.limit > SETTINGS.initial
    assert upstream.load(9000, 5).refused == 0


def test_upstream_that_becomes_slower_is_believed_after_a_probe() -> None:
    """150 ms of work in place of 20, and still no queue: refusing for longer than the probe would be wrong."""
    upstream = Upstream(1000, 0.02)
    upstream.load(3000, 5)
    upstream.work_s = lambda: 0.15
    upstream.load(700, 5)
    assert upstream.limit.base_s == pytest.approx(0.15, rel=0.05)
    after = upstream.load(700, 20)
    assert after.refused == 0
    upstream.work_s = lambda: 0.02
    assert upstream.load(3000, 5).refused == 0


def test_base_comes_down_at_once_when_the_upstream_is_fast_again() -> None:
    upstream = Upstream(1000, 0.5)
    upstream.load(100, 10)
    assert upstream.limit.base_s == pytest.approx(0.5)
    upstream.work_s = lambda: 0.01
    upstream.load(500, 5)
    assert upstream.limit.base_s == pytest.approx(0.01, rel=0.1)


def test_capacity_lost_and_found() -> None:
    upstream = Upstream(20, 0.02)
    upstream.load(500, 5)
    upstream.workers = 5
    less = upstream.load(500, 20)
    assert less.good >= 0.95 * 250
    assert less.p50_s <= 0.25
    upstream.workers = 20
    upstream.load(900, 2)
    assert upstream.load(900, 10).refused == 0


def test_few_slow_requests_among_many_fast_ones_cost_the_fast_ones_nothing() -> None:
    upstream = Upstream(1000, 0.001)
    upstream.work_s = lambda: 3.0 if upstream.random.random() < 0.02 else 0.001
    upstream.load(500, 20)
    assert upstream.load(1000, 20).refused == 0


def test_idle_upstream_keeps_its_limit() -> None:
    upstream = Upstream(20, 0.02)
    upstream.load(5, 600)
    assert upstream.limit.limit == SETTINGS.initial


def test_limit_stays_between_its_bounds() -> None:
    narrow = Upstream(1, 0.5)
    narrow.load(1000, 10)
    assert narrow.limit.limit >= SETTINGS.minimum
    wide = Upstream(100_000, 0.02)
    wide.load(20_000, 2)
    assert wide.limit.limit == SETTINGS.maximum


def test_hung_upstream_cuts_the_limit_and_is_not_taken_for_a_slow_one() -> None:
    upstream = Upstream(1000, 0.02)
    upstream.load(1000, 5)
    upstream.ok, upstream.work_s = False, lambda: 5.0
    upstream.load(500, 120)
    assert upstream.limit.limit < SETTINGS.initial / 2
    assert upstream.limit.base_s == pytest.approx(0.02, rel=0.01)
    upstream.ok, upstream.work_s = True, lambda: 0.02
    upstream.load(1000, 10)
    assert upstream.load(1000, 10).refused == 0


def test_failures_that_cost_no_time_say_nothing() -> None:
    upstream = Upstream(1000, 0.02)
    upstream.load(500, 5)
    base_s = upstream.limit.base_s
    upstream.ok, upstream.work_s = False, lambda: 0.0001
    upstream.load(5000, 5)
    assert upstream.limit.base_s == base_s
    assert upstream.limit.limit >= SETTINGS.initial


def test_old_cut_is_forgotten_when_the_limit_is_met_again() -> None:
    upstream = Upstream(1, 0.5)
    upstream.load(1000, 30)
    limit = upstream.limit
    assert limit.limit < SETTINGS.initial
    now = upstream.now + 3600
    while limit.in_flight:
        limit.leave(now - 0.5, limit.probe, now, ok=True)
    entered = sum(limit.enter(now) for _ in range(SETTINGS.initial))
    assert entered == SETTINGS.initial


def test_probe_of_an_upstream_that_no_longer_answers_ends() -> None:
    """Everything in flight hangs while the limit is lowered: nothing leaves that could end the probe."""
    upstream = Upstream(20, 0.02)
    upstream.load(500, 5)
    upstream.load(2000, 1)
    limit = upstream.limit
    until = upstream.now + 30
    while not limit.probing and upstream.now < until:
        upstream.load(2000, 0.05)
    assert limit.probing
    lowered = limit.limit
    now = upstream.now
    while limit.enter(now):
        pass
    assert not limit.enter(now + 0.1)
    assert limit.enter(now + 30)
    assert limit.limit > lowered
