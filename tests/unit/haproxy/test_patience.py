"""A service that flaps its route must not keep the edge reloading; all the others must not wait for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from discovery.model import Route
from haproxy.controller.config.model import VerifyKey
from haproxy.controller.loop.backoff import FORGET_S, FREE_CHANGES, MOST_S, RELOAD_EVERY_S, Patience

STEADY = {"users": Route("users", ("/api/users",))}


def flapping(turn: int) -> dict[str, Route]:
    return {**STEADY, "flap": Route("flap", ("/api/flap",), timeout_s=1 + turn % 2)}


class Edge:
    """What the sync loop does: reload as soon as it may, and no sooner."""

    def __init__(self) -> None:
        self.patience = Patience()
        self.patience.in_step(STEADY, ())
        self.now = 1000.0
        self.reloads: list[float] = []

    def change(self, routes: Mapping[str, Route], keys: tuple[VerifyKey, ...] = ()) -> float:
        """Bring these; answers how long that took."""
        began = self.now
        self.now = max(self.now, self.patience.due(routes, keys))
        self.patience.tried(self.now)
        self.patience.reloaded(routes, keys, self.now)
        self.reloads.append(self.now)
        return self.now - began


@pytest.fixture
def edge() -> Edge:
    return Edge()


def test_first_change_is_due_at_once_and_the_next_a_second_later(edge: Edge) -> None:
    assert edge.change(flapping(0)) == 0.0
    assert edge.change(flapping(1)) == pytest.approx(RELOAD_EVERY_S)


def test_flapping_route_waits_longer_each_time_up_to_a_bound(edge: Edge) -> None:
    waits = [edge.change(flapping(turn)) for turn in range(FREE_CHANGES + 10)]
    assert waits[:FREE_CHANGES] == pytest.approx([0.0] + [RELOAD_EVERY_S] * (FREE_CHANGES - 1))
    assert waits[FREE_CHANGES + 1 : FREE_CHANGES + 4] == pytest.approx([2.0, 4.0, 8.0])
    assert waits[-1] == MOST_S
    edge_s = edge.now - 1000.0
    assert len([at for at in edge.reloads if at > edge.now - 600]) <= 45, f"of {edge_s} s"


def test_another_service_does_not_wait_for_it_and_takes_it_along(edge: Edge) -> None:
    for turn in range(FREE_CHANGES + 5):
        edge.change(flapping(turn))
    edge.now += RELOAD_EVERY_S
    pending = flapping(FREE_CHANGES + 5)
    assert edge.patience.due(pending, ()) > edge.now + 10
    assert edge.change({**pending, "new": Route("new", ("/api/new",))}) == 0.0


def test_key_does_not_wait_for_it(edge: Edge) -> None:
    for turn in range(FREE_CHANGES + 5):
        edge.change(flapping(turn))
    edge.now += RELOAD_EVERY_S
    assert edge.change(flapping(0), (VerifyKey("k1", "/x.pem"),)) == 0.0


def test_what_the_worker_may_lack_does_not_wait(edge: Edge) -> None:
    for turn in range(FREE_CHANGES + 5):
        edge.change(flapping(turn))
    edge.now += RELOAD_EVERY_S
    edge.patience.unknown()
    assert edge.patience.due(flapping(1), ()) <= edge.now


def test_quiet_service_begins_anew(edge: Edge) -> None:
    for turn in range(FREE_CHANGES + 5):
        edge.change(flapping(turn))
    edge.now += FORGET_S + 1
    assert edge.change(flapping(FREE_CHANGES + 5)) == 0.0
    assert edge.change(flapping(FREE_CHANGES + 6)) == pytest.approx(RELOAD_EVERY_S)


def test_route_that_is_back_before_its_reload_costs_none(edge: Edge) -> None:
    edge.change(flapping(0))
    edge.patience.due(flapping(1), ())
    edge.patience.in_step(flapping(0), ())
    other = {**flapping(0), "users": replace(STEADY["users"], timeout_s=5)}
    edge.now += RELOAD_EVERY_S
    assert edge.change(other) == 0.0


def test_names_that_never_come_back_take_no_room(edge: Edge) -> None:
    for turn in range(300):
        edge.change({**STEADY, f"once-{turn}": Route(f"once-{turn}", (f"/api/once-{turn}",))})
    assert len(edge.patience._records) < 2 * FORGET_S / RELOAD_EVERY_S + 2
