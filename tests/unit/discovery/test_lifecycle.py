"""The order of coming and going."""

from __future__ import annotations

from discovery.consul.lifecycle import Lifecycle
from tests.support.clock import ManualClock


class Kept:
    def __init__(self, events: list[str]) -> None:
        self._events = events

    def start(self) -> None:
        self._events.append("register")

    def stop(self, deregister: bool = True) -> bool:
        self._events.append("deregister")
        return True


class Counting(ManualClock):
    """Tells the test what is slept."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self._events = events

    def sleep(self, seconds: float) -> None:
        self._events.append(f"sleep {seconds}")
        super().sleep(seconds)


def test_registers_only_once_it_can_serve() -> None:
    events: list[str] = []
    answers = [False, False, True]
    life = Lifecycle(Kept(events), lambda: answers.pop(0), clock=Counting(events))
    assert not life.serving
    assert life.start(5.0)
    assert events == ["sleep 0.05", "sleep 0.05", "register"]
    assert life.serving


def test_never_ready_is_never_registered() -> None:
    events: list[str] = []
    life = Lifecycle(Kept(events), lambda: False, clock=ManualClock())
    assert not life.start(1.0)
    assert events == []


def test_leaves_consul_then_serves_on_then_waits_for_what_is_open() -> None:
    events: list[str] = []
    life = Lifecycle(Kept(events), lambda: True, drain_delay_s=1.0, clock=Counting(events))
    life.start(1.0)
    left = [2, 1, 0]
    assert life.stop(lambda: left.pop(0))
    assert events == ["register", "deregister", "sleep 1.0", "sleep 0.05", "sleep 0.05"]
    assert life.state == "stopped"


def test_requests_that_do_not_end_are_given_up_after_the_timeout() -> None:
    clock = ManualClock()
    life = Lifecycle(Kept([]), lambda: True, drain_delay_s=0.0, drain_timeout_s=3.0, clock=clock)
    life.start(1.0)
    began = clock.monotonic()
    assert not life.stop(lambda: 1)
    assert 3.0 <= clock.monotonic() - began < 3.2


def test_stopped_while_starting_neither_registers_nor_waits() -> None:
    events: list[str] = []
    life = Lifecycle(Kept(events), lambda: life.stop() and False, clock=ManualClock())
    assert not life.start(5.0)
    assert events == []
