"""The guard against a catalog that loses most of the fleet at once."""

from __future__ import annotations

import pytest

from haproxy.controller.config.model import Server
from haproxy.controller.wanted.mass_exit import Guard

FLEET = {f"s{n}": Server(f"s{n}", "127.0.0.1", 20000 + n) for n in range(10)}


def without(*numbers: int) -> dict[str, Server]:
    return {name: server for name, server in FLEET.items() if int(name[1:]) not in numbers}


def step(
    guard: Guard,
    after: dict[str, Server],
    now: float,
    before: dict[str, Server] = FLEET,
    out: frozenset[str] = frozenset(),
) -> None:
    guard.step({"users": before}, {"users": after}, {"users": out}, len(after), now)


def test_more_than_half_gone_in_one_step_is_held_for_the_grace() -> None:
    guard = Guard(10, 4)
    step(guard, without(*range(6)), now=100)
    assert guard.active
    assert set(guard.held["users"]) == {f"s{n}" for n in range(6)}
    assert guard.release(109.9) == set()
    assert guard.release(110) == {"users"}
    assert not guard.held
    assert not guard.active


@pytest.mark.parametrize(
    ("after", "before", "out"),
    [
        (without(*range(5)), FLEET, frozenset()),
        ({}, {name: FLEET[name] for name in ("s1", "s2", "s3")}, frozenset()),
        ({}, FLEET, frozenset(FLEET)),
    ],
    ids=["half", "few, however large their share", "ordered out, in maintenance"],
)
def test_what_is_no_mass_exit_is_let_go_at_once(
    after: dict[str, Server], before: dict[str, Server], out: frozenset[str]
) -> None:
    guard = Guard(10, 4)
    step(guard, after, now=100, before=before, out=out)
    assert not guard.active


def test_step_that_comes_in_parts_counts_as_one() -> None:
    guard = Guard(10, 4)
    step(guard, without(0, 1, 2), now=100)
    step(guard, without(*range(6)), now=100.2, before=without(0, 1, 2))
    assert set(guard.held["users"]) == {f"s{n}" for n in range(6)}


def test_instances_that_leave_one_after_the_other_are_no_step() -> None:
    guard = Guard(10, 4)
    for n in range(9):
        step(guard, without(*range(n + 1)), now=100 + 0.01 * n, before=without(*range(n)))
        assert not guard.active


def test_parts_that_lie_apart_are_two_steps() -> None:
    guard = Guard(10, 4)
    step(guard, without(0, 1, 2), now=100)
    step(guard, without(*range(6)), now=101, before=without(0, 1, 2))
    assert not guard.active


def test_instance_that_returns_is_held_no_more() -> None:
    guard = Guard(10, 4)
    step(guard, {}, now=100)
    step(guard, without(*range(1, 10)), now=101, before={})
    assert "s0" not in guard.held["users"]
    assert len(guard.held["users"]) == 9
