"""What may befall a broker, and that no event is lost by it or has its effect twice."""

from __future__ import annotations

import threading
import time

import pytest

from services.kit.events.event import wrap
from services.kit.redis_client import Away
from services.kit.text import now_us
from tests.contract.events.brokers import Broker
from tests.contract.events.rig import Producer, Stats, UserDeleted, in_order, relaying
from tests.support.eventually import eventually, time_scale

pytestmark = pytest.mark.shares("rabbitmq")


def some_event() -> str:
    """Of a type that stats takes no notice of: it may arrive all the same."""
    return wrap(UserDeleted(userId="b"), now_us()).to_json()


def assert_exact(counter: Stats, count: int) -> None:
    found = counter.seen()
    assert sorted(number for _, number in found) == list(range(1, count + 1)), "lost, or twice"
    assert in_order(found)


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.long)])
def test_broker_killed_under_load_loses_and_doubles_nothing(
    broker: Broker, posts: Producer, counter: Stats, kills: int
) -> None:
    done, sent = threading.Event(), 0

    def load() -> None:
        nonlocal sent
        while not done.is_set():
            posts.publish(f"post-{sent % 5}", sent + 1)
            sent += 1
            time.sleep(0.005)

    publishing = threading.Thread(target=load, daemon=True)
    with relaying(posts), counter.running():
        publishing.start()
        try:
            for _ in range(kills):
                before = counter.count()
                eventually(lambda before=before: counter.count() > before + 20, 30)
                broker.kill()
                broker.start()
        finally:
            done.set()
            publishing.join(10)
        eventually(lambda: counter.count() >= sent, 30)
        time.sleep(0.5)
    print(f"{broker.name}: {sent} events, {kills} kills, {counter.count()} effects")
    assert_exact(counter, sent)


@pytest.mark.long
def test_broker_that_is_away_for_a_minute_is_followed_by_all_that_waited(
    broker: Broker, posts: Producer, counter: Stats
) -> None:
    with relaying(posts), counter.running():
        posts.publish("a", 1)
        eventually(counter.count, 10)
        broker.kill()
        for number in range(2, 62):
            posts.publish("a", number)
            time.sleep(1)
        assert posts.unsent() == 60
        broker.start()
        back = time.monotonic()
        eventually(lambda: counter.count() == 61, 30)
        print(f"{broker.name}: 60 events {time.monotonic() - back:.1f} s after its return")
    assert_exact(counter, 61)


def test_broker_without_room_costs_publishers_nothing_and_all_arrives_once_there_is_some(
    broker: Broker, posts: Producer, counter: Stats
) -> None:
    """Redis has no memory left, RabbitMQ no disk."""
    with relaying(posts), counter.running():
        posts.publish("a", 1)
        eventually(counter.count, 10)
        broker.fill()
        try:
            posts.publish("a", *range(2, 12))
            eventually(lambda: posts.publisher.loop.failing, 20)
            began = time.monotonic()
            with pytest.raises(Away):
                posts.transport.publish("posts", [some_event()])
            took_s = time.monotonic() - began
            assert posts.unsent() == 10
        finally:
            broker.room()
        eventually(lambda: posts.unsent() == 0, 20)
        eventually(lambda: counter.count() == 11, 10)
    print(f"{broker.name}: refused after {took_s:.1f} s")
    assert took_s < 10 * time_scale()
    assert_exact(counter, 11)
