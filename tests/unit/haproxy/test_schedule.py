"""A service that flaps its route must not keep the edge reloading; all the others must not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest

from discovery.model import Route
from haproxy.controller.config.model import EdgeState, VerifyKey
from haproxy.controller.loop.schedule import (
    FORGET_S,
    FREE_CHANGES,
    MOST_S,
    RELOAD_EVERY_S,
    Flapping,
    Reloads,
    Wanted,
)
from haproxy.controller.loop.steady import Health
from haproxy.controller.metrics import Metrics
from haproxy.controller.runtime.socket import ProcessInfo
from tests.support.clock import ManualClock

STEADY = {"users": Route("users", ("/api/users",))}


def flapping(turn: int) -> dict[str, Route]:
    return {**STEADY, "flap": Route("flap", ("/api/flap",), timeout_s=1 + turn % 2)}


class Reloader:
    """Whose reloads take no time; the worker was loaded with `print_`."""

    def __init__(self, print_: str) -> None:
        self._print = print_

    def loaded(self, process: ProcessInfo) -> str:
        return self._print

    def reload(self, state: EdgeState) -> ProcessInfo:
        return ProcessInfo(2, 2)

    def mark(self, process: ProcessInfo, print_: str) -> None:
        pass


def wanted(routes: Mapping[str, Route], keys: tuple[VerifyKey, ...] = ()) -> Wanted:
    return Wanted(repr((sorted(routes.items()), keys)), routes, keys)


class Edge:
    """What the sync loop does: reload as soon as it may, and no sooner."""

    def __init__(self) -> None:
        self.clock, self.ended = ManualClock(1000.0), threading.Event()
        reloader = cast(Any, Reloader(wanted(STEADY).print_))
        self.reloads = Reloads(reloader, Metrics(), Health(), self.ended.set, self.clock)
        self.reloads.meet(ProcessInfo(1, 1))
        self.reloads.want(wanted(STEADY), "start")
        self.times: list[float] = []

    def due(self, routes: Mapping[str, Route], keys: tuple[VerifyKey, ...] = ()) -> float:
        """When these may be brought."""
        assert self.reloads.want(wanted(routes, keys), "routes")
        assert self.reloads.at is not None
        return self.reloads.at

    def change(self, routes: Mapping[str, Route], keys: tuple[VerifyKey, ...] = ()) -> float:
        """Bring these; answers how long that took."""
        began = self.clock.now
        self.clock.now = max(began, self.due(routes, keys))
        assert self.reloads.ready(self.clock.now, hold=False)
        self.ended.clear()
        self.reloads.start(EdgeState(), wanted(routes, keys))
        assert self.ended.wait(10)
        assert self.reloads.take() is not None
        self.times.append(self.clock.now)
        return self.clock.now - began


@pytest.fixture
def edge() -> Iterator[Edge]:
    made = Edge()
    yield made
    made.reloads.stop()


def test_first_change_is_due_at_once_and_the_next_a_second_later(edge: Edge) -> None:
    assert edge.change(flapping(0)) == 0.0
    assert edge.change(flapping(1)) == pytest.approx(RELOAD_EVERY_S)


def test_flapping_route_waits_longer_each_time_up_to_a_bound(edge: Edge) -> None:
    waits = [edge.change(flapping(turn)) for turn in range(FREE_CHANGES + 10)]
    assert waits[:FREE_CHANGES] == pytest.approx([0.0] + [RELOAD_EVERY_S] * (FREE_CHANGES - 1))
    assert waits[FREE_CHANGES + 1 : FREE_CHANGES + 4] == pytest.approx([2.0, 4.0, 8.0])
    assert waits[-1] == MOST_S
    edge_s = edge.clock.now - 1000.0
    assert len([at for at in edge.times if at > edge.clock.now - 600]) <= 45, f"of {edge_s} s"


def test_another_service_does_not_wait_for_it_and_takes_it_along(edge: Edge) -> None:
    for turn in range(FREE_CHANGES + 5):
        edge.change(flapping(turn))
    edge.clock.now += RELOAD_EVERY_S
    pending = flapping(FREE_CHANGES + 5)
    assert edge.due(pending) > edge.clock.now + 10
    assert edge.change({**pending, "new": Route("new", ("/api/new",))}) == 0.0


def test_key_does_not_wait_for_it(edge: Edge) -> None:
    for turn in range(FREE_CHANGES + 5):
        edge.change(flapping(turn))
    edge.clock.now += RELOAD_EVERY_S
    assert edge.change(flapping(0), (VerifyKey("k1", "/x.pem"),)) == 0.0


def test_what_the_worker_may_lack_does_not_wait(edge: Edge) -> None:
    for turn in range(FREE_CHANGES + 5):
        edge.change(flapping(turn))
    edge.clock.now += RELOAD_EVERY_S
    edge.reloads.lack()
    assert edge.due(flapping(1)) <= edge.clock.now


def test_quiet_service_begins_anew(edge: Edge) -> None:
    for turn in range(FREE_CHANGES + 5):
        edge.change(flapping(turn))
    edge.clock.now += FORGET_S + 1
    assert edge.change(flapping(FREE_CHANGES + 5)) == 0.0
    assert edge.change(flapping(FREE_CHANGES + 6)) == pytest.approx(RELOAD_EVERY_S)


def test_route_that_is_back_before_its_reload_costs_none(edge: Edge) -> None:
    edge.change(flapping(0))
    edge.due(flapping(1))
    assert not edge.reloads.want(wanted(flapping(0)), "routes")
    assert not edge.reloads.busy
    other = {**flapping(0), "users": replace(STEADY["users"], timeout_s=5)}
    edge.clock.now += RELOAD_EVERY_S
    assert edge.change(other) == 0.0


def test_names_that_never_come_back_take_no_room() -> None:
    records = Flapping()
    for turn in range(300):
        records.reloaded([f"once-{turn}"], turn * RELOAD_EVERY_S)
    assert len(records) < FORGET_S / RELOAD_EVERY_S + 2
