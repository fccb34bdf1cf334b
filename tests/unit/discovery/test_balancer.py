"""Which instance is picked: weights, ejections, backups, and what moves when instances come and go."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.balancing.balancer import Balancer, balance_of, candidates, rendezvous, usable, weight_of
from discovery.balancing.ejection import identity
from discovery.model import Instance
from tests.support.clock import ManualClock


def instance(number: int, weight: object = 100, **more: object) -> Instance:
    meta = {"edge-weight": str(weight)} | more.pop("meta", {})  # type: ignore[operator]
    return Instance("users", f"u-{number}", "n", "127.0.0.1", 20000 + number, meta=meta, **more)  # type: ignore[arg-type]


A, B, C = instance(1, 100), instance(2, 50), instance(3, 50)


@pytest.mark.parametrize(
    ("text", "weight"),
    [("1", 1), ("256", 256), ("257", 100), ("0", 100), ("-1", 100), ("x", 100), ("１", 100)],
)
def test_bad_weight_counts_as_the_default(text: str, weight: int) -> None:
    assert weight_of(instance(1, text)) == weight


def test_round_robin_is_smooth_and_by_weight() -> None:
    balancer = Balancer()
    picks = [balancer.pick([A, B, C], "roundrobin").id for _ in range(8)]
    assert Counter(picks) == {"u-1": 4, "u-2": 2, "u-3": 2}
    assert all(picks[at] != picks[at + 1] or picks[at] == "u-1" for at in range(7))


def test_round_robin_goes_on_when_an_instance_leaves_and_returns() -> None:
    balancer = Balancer()
    for _ in range(100):
        balancer.pick([A, B], "roundrobin")
    picks = Counter(balancer.pick([A, B, C], "roundrobin").id for _ in range(400))
    assert picks["u-1"] == pytest.approx(200, abs=4)
    assert picks["u-3"] == pytest.approx(100, abs=4)


def test_least_outstanding_is_by_weight_and_idle_ones_take_turns() -> None:
    balancer = Balancer()
    idle = Counter(balancer.pick([A, B, C], "leastconn").id for _ in range(8))
    assert idle == {"u-1": 4, "u-2": 2, "u-3": 2}
    taken = []
    for _ in range(8):
        taken.append(balancer.pick([A, B, C], "leastconn"))
        balancer.began(taken[-1])
    assert Counter(each.id for each in taken) == {"u-1": 4, "u-2": 2, "u-3": 2}
    balancer.ended(B)
    assert balancer.pick([A, B, C], "leastconn") is B


def test_outstanding_never_goes_below_zero() -> None:
    balancer = Balancer()
    balancer.ended(A)
    balancer.began(A)
    assert [balancer.pick([A, replace(A, id="u-9")], "leastconn").id for _ in range(4)] == ["u-9"] * 4


def test_source_keeps_a_key_and_moves_only_the_share_of_who_left() -> None:
    group = [instance(number) for number in range(5)]
    keys = [f"user-{number}" for number in range(2000)]
    before = {key: rendezvous(group, key).id for key in keys}
    after = {key: rendezvous(group[:-1], key).id for key in keys}
    moved = [key for key in keys if before[key] != after[key]]
    assert moved == [key for key in keys if before[key] == "u-4"]
    assert len(moved) == pytest.approx(400, abs=80)


def test_source_shares_by_weight() -> None:
    picks = Counter(rendezvous([A, B, C], f"k-{number}").id for number in range(4000))
    assert picks["u-1"] == pytest.approx(2000, abs=150)
    assert picks["u-2"] == pytest.approx(1000, abs=150)


def test_source_without_a_key_takes_turns() -> None:
    balancer = Balancer()
    assert len({balancer.pick([B, C], "source").id for _ in range(4)}) == 2
    assert len({balancer.pick([B, C], "source", "k").id for _ in range(4)}) == 1


def test_random_is_by_weight() -> None:
    clock = ManualClock()
    balancer = Balancer(clock)
    picks = Counter()
    for step in range(100):
        clock.chance = step / 100
        picks[balancer.pick([A, B, C], "random").id] += 1
    assert picks == {"u-1": 50, "u-2": 25, "u-3": 25}


def test_critical_maintained_and_skipped_warning_are_not_usable() -> None:
    warning = instance(4, status="warning")
    skipped = instance(5, status="warning", meta={"edge-warning": "skip"})
    assert usable([A, instance(6, status="critical"), instance(7, maintenance=True), warning, skipped]) == [
        A,
        warning,
    ]


def test_groups_are_fresh_then_backup_then_ejected_then_tried() -> None:
    backup = instance(9, meta={"edge-backup": "true"})
    everyone = [A, B, backup]
    a, b, spare = identity(A), identity(B), identity(backup)
    assert candidates(everyone, set(), set()) == [A, B]
    assert candidates(everyone, {a}, set()) == [B]
    assert candidates(everyone, {a}, {b}) == [backup]
    assert candidates(everyone, {a}, {b, spare}) == [A]
    assert candidates(everyone, {a, b, spare}, set()) == everyone
    assert candidates(everyone, set(), {a, b, spare}) == everyone
    assert candidates([], set(), set()) == []


def test_unknown_balance_counts_as_round_robin() -> None:
    assert balance_of(instance(1, meta={"edge-balance": "leastconn"})) == "leastconn"
    assert balance_of(instance(1, meta={"edge-balance": "static-rr\nx"})) == "roundrobin"


@given(st.lists(st.integers(1, 256), min_size=1, max_size=8), st.sampled_from(["roundrobin", "leastconn"]))
def test_shares_follow_weights_whatever_they_are(weights: list[int], balance: str) -> None:
    group = [instance(number, weight) for number, weight in enumerate(weights)]
    balancer = Balancer()
    picks = Counter(balancer.pick(group, balance).id for _ in range(sum(weights)))  # type: ignore[arg-type]
    assert [picks[each.id] for each in group] == weights
