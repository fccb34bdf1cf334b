"""When an instance is in Consul: not before it can serve, and not after it has left."""

from __future__ import annotations

from discovery import Keeper, Registration
from discovery.errors import ConsulUnreachable
from discovery.model import Status
from tests.support.clock import ManualClock

USERS = Registration("users", "127.0.0.1", 7100, "users-1")


class Agent:
    """Notes what it is asked to do."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.there = True

    def register(self, registration: Registration, status: Status = "critical") -> None:
        self.asked.append(f"register {registration.address} {status}")

    def deregister(self, instance_id: str) -> None:
        self.asked.append(f"deregister {instance_id}")
        if not self.there:
            raise ConsulUnreachable("away")

    def holds(self, registration: Registration) -> bool:
        return True


def test_registers_only_once_it_can_serve() -> None:
    agent, clock, answers = Agent(), ManualClock(), [False, False, True]
    keeper = Keeper(agent, USERS, ready=lambda: answers.pop(0), clock=clock)
    for _ in range(2):
        clock.sleep(keeper.turn())
        assert agent.asked == []
    assert keeper.turn() == 5.0
    assert agent.asked == ["register 127.0.0.1 passing"]


def test_turn_before_its_time_does_nothing() -> None:
    agent, clock, looks = Agent(), ManualClock(), []
    keeper = Keeper(agent, USERS, ready=lambda: bool(looks.append(1)), clock=clock)
    pause_s = keeper.turn()
    clock.sleep(pause_s / 2)
    assert 0 < keeper.turn() < pause_s
    assert len(looks) == 1


def test_address_that_cannot_be_told_delays_the_first_registration_and_keeps_a_later_one() -> None:
    agent, clock, said = Agent(), ManualClock(), [None, USERS, None]
    keeper = Keeper(agent, lambda: said.pop(0), clock=clock)
    for _ in range(3):
        clock.sleep(keeper.turn())
    assert agent.asked == ["register 127.0.0.1 passing"]
    assert keeper.state == "registered"


def test_stopped_before_it_could_serve_it_has_nothing_to_take_back() -> None:
    agent = Agent()
    keeper = Keeper(agent, USERS, ready=lambda: False, clock=ManualClock())
    keeper.turn()
    assert keeper.stop()
    keeper.turn()
    assert agent.asked == []


def test_leaves_once_also_where_consul_is_away() -> None:
    agent, clock = Agent(), ManualClock()
    keeper = Keeper(agent, USERS, clock=clock)
    clock.sleep(keeper.turn())
    agent.there = False
    assert not keeper.stop()
    assert not keeper.stop()
    keeper.turn()
    assert agent.asked == ["register 127.0.0.1 passing", "deregister users-1"]
