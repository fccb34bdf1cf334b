"""Many calls at once when instances refuse connections: what the retries cost in a full outage, and that one of three costs nothing.

Calls run as greenlets over a simulated time, so that the order in which they hear of refusals is a seed's.
"""

from __future__ import annotations

import heapq
import itertools
import random
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from greenlet import getcurrent, greenlet

from discovery import BreakerSettings, CallError, ClientSettings, ServiceClient, StaticView
from discovery.model import Balance
from tests.support.clock import ManualClock
from tests.support.scripted import upstream
from tests.unit.discovery.calling import dead

AT_ONCE = [0.0] * 50
NO_BREAKER = ClientSettings(breaker=BreakerSettings(min_calls=1_000_000))
real_connect = socket.create_connection


class Simulation(ManualClock):
    """A greenlet that sleeps gives way to those that are due before it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.dice = random.Random(seed)
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, greenlet]] = []

    def random(self) -> float:
        return self.dice.random()

    def sleep(self, seconds: float) -> None:
        self._enter(seconds, getcurrent())
        getcurrent().parent.switch()

    def _enter(self, in_s: float, sleeper: greenlet) -> None:
        heapq.heappush(self._due, (self.now + in_s, next(self._numbers), sleeper))

    def run(self, work: Callable[[], None], begins_s: Sequence[float]) -> None:
        """`work` begun at each of these times, until all have ended."""
        for in_s in begins_s:
            self._enter(in_s, greenlet(work))
        while self._due:
            self.now, _, sleeper = heapq.heappop(self._due)
            sleeper.switch()


@dataclass
class Network:
    """Connecting takes 1 to 2 ms; nothing listens at the ports that are `refusing`."""

    clock: Simulation
    refusing: set[int] = field(default_factory=set)
    connects: Counter[int] = field(default_factory=Counter)

    def connect(self, address: str, port: int, timeout_s: float) -> socket.socket:
        self.connects[port] += 1
        self.clock.sleep(0.001 + 0.001 * self.clock.random())
        if port in self.refusing:
            raise ConnectionRefusedError
        return real_connect((address, port), 5)


SEEDS = [pytest.param(seed, marks=[pytest.mark.long] * (seed > 2)) for seed in range(10)]


@pytest.fixture(params=SEEDS)
def network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network(Simulation(request.param))
    monkeypatch.setattr("discovery.http.transport.connect", made.connect)
    return made


def outage(network: Network, balance: Balance, begins_s: Sequence[float]) -> int:
    """The retries of calls that begin then, to three instances that all refuse."""
    instances = [dead(f"users-{number}") for number in range(3)]
    network.refusing = {instance.port for instance in instances}
    client = ServiceClient(StaticView(instances), settings=NO_BREAKER, clock=network.clock)

    def call() -> None:
        with pytest.raises(CallError):
            client.request("GET", "users", "/", balance=balance)

    network.clock.run(call, begins_s)
    assert len(network.connects) == 3
    return network.connects.total() - len(begins_s)


@pytest.mark.parametrize("balance", ["roundrobin", "first", "random"])
def test_full_outage_met_by_many_at_once_costs_a_fifth_at_most(network: Network, balance: Balance) -> None:
    assert 1 <= outage(network, balance, AT_ONCE) <= 0.2 * len(AT_ONCE)


@pytest.mark.parametrize("balance", ["roundrobin", "first"])
def test_full_outage_that_lasts_costs_a_fifth_at_most(network: Network, balance: Balance) -> None:
    # Ejections end after 2, 6, 14 and 30 s.
    steady = [number / 10 for number in range(400)]
    assert 1 <= outage(network, balance, steady) <= 0.2 * len(steady)


def test_end_of_an_ejection_does_not_overdraw_the_budget(network: Network) -> None:
    begins_s = [*AT_ONCE, 3.0]
    assert outage(network, "roundrobin", begins_s) <= 0.2 * len(begins_s)


@pytest.mark.parametrize("balance", ["roundrobin", "first"])
def test_one_of_three_that_refuses_costs_no_call_of_many_at_once(network: Network, balance: Balance) -> None:
    refused = dead()
    network.refusing = {refused.port}
    answers: list[int] = []
    with upstream() as one, upstream() as two:
        instances = [refused, one.instance(), two.instance()]
        client = ServiceClient(StaticView(instances), settings=NO_BREAKER, clock=network.clock)
        network.clock.run(
            lambda: answers.append(client.request("GET", "users", "/", balance=balance).status), AT_ONCE
        )
    assert answers == [200] * len(AT_ONCE)
    assert network.connects[refused.port] > 0.2 * len(AT_ONCE), "the budget alone would have done"
