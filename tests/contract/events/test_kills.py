"""Both sides of the broker killed again and again under a load of events: none is lost, none has its effect twice."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.events.brokers import Broker, introduce, transport
from tests.contract.events.rig import Producer, Stats, database, file, in_order, relaying, stats
from tests.support.eventually import eventually, time_scale
from tests.support.servers import Process

pytestmark = pytest.mark.shares("rabbitmq")


@contextmanager
def process(module: str, broker: Broker, folder: Path, name: str) -> Iterator[Process]:
    url = broker.url(name.partition("-")[0])
    argv = [sys.executable, "-m", f"tests.contract.events.{module}", url, str(folder), name]
    one = Process(argv, folder / f"{name}.log")
    one.start()
    try:
        yield one
    finally:
        one.stop()


def watched(folder: Path, broker: Broker) -> Stats:
    """To look at what the processes have done."""
    introduce(broker)
    db, tables, effects = database(file(folder, "stats"))
    return stats(db, tables, effects, transport(broker, "stats", 9))


@pytest.mark.parametrize(
    ("side", "kills"),
    [
        ("consume", 4),
        pytest.param("consume", 25, marks=pytest.mark.long),
        pytest.param("relay", 25, marks=pytest.mark.long),
    ],
)
def test_killed_at_any_moment_and_nothing_is_lost_or_doubled(
    broker: Broker, posts: Producer, tmp_path: Path, side: str, kills: int
) -> None:
    seen = watched(tmp_path, broker)
    chance, sent = random.Random(1), 0
    with (
        process("consume", broker, tmp_path, "stats-1") as consumer,
        process("relay", broker, tmp_path, "posts-1") as relay,
    ):
        victim = consumer if side == "consume" else relay
        for _ in range(kills):
            for _ in range(40):
                sent += 1
                posts.publish(f"post-{sent % 5}", sent)
            before = seen.count()
            eventually(lambda before=before: seen.count() > before, 15, every_s=0.005)
            time.sleep(chance.random() * 0.05)
            victim.kill()
            victim.start()
        eventually(lambda: seen.count() >= sent, 30)
        time.sleep(0.5)
    found = seen.seen()
    assert sorted(number for _, number in found) == list(range(1, sent + 1)), "lost, or twice"
    assert in_order(found)


def test_another_instance_takes_over_from_a_killed_one_within_10_s(
    broker: Broker, posts: Producer, tmp_path: Path
) -> None:
    seen = watched(tmp_path, broker)
    with relaying(posts), process("consume", broker, tmp_path, "stats-1") as first:
        posts.publish("a", 1)
        eventually(seen.count, 15)
        with process("consume", broker, tmp_path, "stats-2"):
            first.kill()
            killed_s = time.monotonic()
            posts.publish("a", 2)
            eventually(lambda: seen.count() == 2, 15)
            assert time.monotonic() - killed_s < 10 * time_scale()


def test_backlog_of_ten_thousand_is_drained_at_a_thousand_a_second(
    broker: Broker, posts: Producer, tmp_path: Path
) -> None:
    seen = watched(tmp_path, broker)
    for start in range(0, 10_000, 100):
        posts.publish(f"post-{start % 7}", *range(start + 1, start + 101))
    with relaying(posts):
        eventually(lambda: posts.unsent() == 0, 30, every_s=0.1)
    began = time.monotonic()
    with seen.running():
        eventually(lambda: seen.count() == 10_000, 60, every_s=0.1)
    took_s = time.monotonic() - began
    print(f"10,000 events by {broker.name} in {took_s:.1f} s")
    assert took_s < 10 * time_scale()
    assert in_order(seen.seen())
