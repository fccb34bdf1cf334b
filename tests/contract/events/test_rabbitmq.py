"""What is RabbitMQ's own in carrying events: heartbeats, queues with a bound, and users with rights."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
import psutil
import pytest
from pika.exceptions import AMQPChannelError, ChannelClosedByBroker, ProbableAuthenticationError
from sqlalchemy.orm import Session

from services.kit.events import rabbitmq
from services.kit.events.event import wrap
from services.kit.events.rabbitmq import DEAD, EVENTS
from services.kit.redis_client import Away
from services.kit.text import now_us
from stack.run import processes
from stack.servers import rabbitmq as stack_rabbitmq
from tests.contract.events.brokers import WANTED, RabbitBroker, introduce, transport
from tests.contract.events.rig import (
    PostPublished,
    Producer,
    Stats,
    connect,
    database,
    file,
    in_order,
    relaying,
    stats,
)
from tests.support.eventually import eventually, time_scale

pytestmark = pytest.mark.shares("rabbitmq")


@pytest.fixture
def broker(rabbit_broker: RabbitBroker) -> RabbitBroker:
    """Of the brokers this one."""
    return rabbit_broker


def event(number: int) -> bytes:
    return wrap(PostPublished(postId="a", number=number), now_us()).to_json().encode()


def test_handler_slower_than_the_heartbeat_keeps_its_events(
    broker: RabbitBroker, posts: Producer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq, "HEARTBEAT_S", 1)
    monkeypatch.setattr(rabbitmq, "BEAT_S", 0.2)
    introduce(broker)
    db, tables, effects = database(file(tmp_path, "slow"))
    first = stats(db, tables, effects, transport(broker, "stats", 1))
    second = stats(db, tables, effects, transport(broker, "stats", 2))
    note = first.note

    def slowly(event: PostPublished, session: Session) -> None:
        time.sleep(4)
        note(event, session)

    first.consumer._handlers[PostPublished.TYPE] = (PostPublished, slowly)
    with relaying(posts), first.running():
        posts.publish("warm", 1)
        eventually(lambda: first.count() == 1, 20)
        with second.running():
            posts.publish("a", 2)
            eventually(lambda: first.count() == 2, 20)
            time.sleep(0.5)
            assert (first.tried, second.tried) == ([("warm", 1), ("a", 2)], [])
            assert broker.waiting("stats.events") == 0
    db.dispose()


def test_full_queue_takes_no_more_until_it_is_acknowledged_and_nothing_is_lost(
    broker: RabbitBroker, posts: Producer, counter: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq, "MAX_LENGTH", 200)
    broker.clear()
    introduce(broker)
    with relaying(posts):
        posts.publish("a", *range(1, 1001))
        eventually(lambda: broker.waiting("stats.events") >= 200, 20)
        time.sleep(1.5)
        assert posts.unsent() > 0
        assert broker.waiting("stats.events") < 1000
        with counter.running():
            eventually(lambda: counter.count() == 1000, 60)
    assert in_order(counter.seen())


def test_deleted_queue_is_made_again(broker: RabbitBroker, posts: Producer, counter: Stats) -> None:
    with relaying(posts), counter.running():
        posts.publish("a", 1)
        eventually(counter.count, 10)
        with broker.channel() as channel:
            channel.queue_delete("stats.events")

        def heard_again() -> bool:
            posts.publish("a", int(time.time() * 1000))
            return counter.count() > 1

        eventually(heard_again, 15, every_s=0.5)


def test_events_of_a_type_that_nobody_hears_go(broker: RabbitBroker, posts: Producer) -> None:
    with relaying(posts):
        posts.publish("a", 1)
        eventually(lambda: posts.unsent() == 0, 10)


def test_message_cannot_name_another_user(broker: RabbitBroker) -> None:
    with broker.channel("users") as channel:
        channel.confirm_delivery()
        properties = pika.BasicProperties(user_id="posts")
        with pytest.raises(ChannelClosedByBroker, match="user_id"):
            channel.basic_publish(EVENTS, PostPublished.TYPE, event(1), properties)


def test_message_that_names_no_user_has_no_effect(
    broker: RabbitBroker, posts: Producer, counter: Stats
) -> None:
    with broker.channel("users") as channel:
        properties = pika.BasicProperties(app_id="posts")
        channel.basic_publish(EVENTS, PostPublished.TYPE, event(1), properties)
    with relaying(posts), counter.running():
        posts.publish("b", 1)
        eventually(counter.count, 10)
    assert counter.seen() == [("b", 1)]


def test_services_that_share_one_user_hear_each_other(broker: RabbitBroker, tmp_path: Path) -> None:
    url = broker.server.url()
    reader = connect(url, "stats-1")
    reader.receive("stats", WANTED, 10, 0.01)
    writer = connect(url, "posts-1")
    writer.publish("posts", [event(1).decode()])
    (found,) = eventually(lambda: reader.receive("stats", WANTED, 10, 0.2), 10)
    assert found.producer == "posts"
    reader.release("stats")
    writer.release("posts")


Act = Callable[[Any], object]
FORBIDDEN: dict[str, Act] = {
    "read another's events": lambda c: c.basic_get("stats.events"),
    "read another's dead letters": lambda c: c.basic_get("stats.dead"),
    "delete another's queue": lambda c: c.queue_delete("stats.events"),
    "empty another's queue": lambda c: c.queue_purge("stats.events"),
    "unbind another's queue": lambda c: c.queue_unbind("stats.events", EVENTS, PostPublished.TYPE),
    "bury for another": lambda c: c.basic_publish(DEAD, "stats", b"x"),
    "hear another's dead letters": lambda c: c.queue_bind("users.dead", DEAD, "stats"),
    "send past the exchange": lambda c: c.basic_publish("", "stats.events", b"x"),
    "delete the exchange": lambda c: c.exchange_delete(EVENTS),
    "make an exchange": lambda c: c.exchange_declare("mine"),
    "make a queue": lambda c: c.queue_declare("mine"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_service_may_not(broker: RabbitBroker, what: str) -> None:
    introduce(broker)
    for service in ("stats", "users"):
        transport(broker, service).bury(service, b"x", "to make the queue")
    with broker.channel("users") as channel:
        channel.confirm_delivery()
        with pytest.raises(AMQPChannelError, match="ACCESS_REFUSED"):
            FORBIDDEN[what](channel)


def test_dead_letter_is_replayed_by_the_operator_alone(broker: RabbitBroker, counter: Stats) -> None:
    stats = counter.transport
    stats.bury("stats", event(1), "refused")
    (letter,) = stats.dead("stats", 10)
    with pytest.raises(Away, match="ACCESS_REFUSED"):
        transport(broker, "users").replay("stats", letter)
    with broker.channel("users") as channel:
        properties = pika.BasicProperties(user_id="users", headers={"replays": letter.handle})
        channel.basic_publish(EVENTS, PostPublished.TYPE, b"forged", properties)
    connect(broker.server.url(), "operator").replay("stats", letter)
    found = []

    def both() -> bool:
        found.extend(stats.receive("stats", WANTED, 10, 0.2))
        return len(found) == 2

    eventually(both, 10)
    assert [(each.body, each.replays) for each in found] == [(b"forged", ""), (letter.body, letter.handle)]
    stats.forget_dead("stats", [letter.handle, "unknown"])
    assert stats.dead("stats", 10) == []


def test_service_that_is_new_is_let_in_while_the_broker_runs(broker: RabbitBroker) -> None:
    node, known = broker.server.node, dict(broker.server.passwords)
    known["hello"] = "secret"
    node.control("import_definitions", str(node.configure(known)))
    hello = connect(stack_rabbitmq.url("hello", "secret", node.address), "hello-1")
    assert hello.receive("hello", WANTED, 1, 0.01) == []
    hello.release("hello")
    introduce(broker)  # the others are let in as before


def test_nobody_enters_without_a_password_or_as_guest(broker: RabbitBroker) -> None:
    for user, password in (("guest", "guest"), ("posts", "posts"), ("posts", "")):
        credentials = pika.PlainCredentials(user, password)
        parameters = pika.ConnectionParameters(
            "127.0.0.1", broker.server.node.port, "breakwater", credentials=credentials
        )
        with pytest.raises(ProbableAuthenticationError):
            pika.BlockingConnection(parameters)


def test_all_ports_are_on_loopback_and_all_files_are_private(broker: RabbitBroker) -> None:
    server = broker.server
    running = {one for process in (server.server, server.epmd) for one in processes.tree(process.pid)}
    listening = {
        (one.laddr.ip, one.laddr.port)
        for process in running
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }
    node = server.node
    assert {port for _, port in listening} == {node.port, node.dist_port, node.epmd_port}
    assert {host for host, _ in listening} <= {"127.0.0.1", "::1"}
    assert node.folder.stat().st_mode & 0o777 == 0o700
    for name in ("definitions.json", "rabbitmq.conf"):
        assert (node.folder / name).stat().st_mode & 0o777 == 0o600
    assert (node.folder / ".erlang.cookie").stat().st_mode & 0o377 == 0


@pytest.mark.long
def test_frozen_broker_is_away_within_seconds(broker: RabbitBroker, posts: Producer) -> None:
    posts.transport.publish("posts", [event(1).decode()])
    broker.server.freeze()
    began = time.monotonic()
    try:
        with pytest.raises(Away):
            posts.transport.publish("posts", [event(2).decode()])
    finally:
        broker.server.thaw()
    print(f"away after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 20 * time_scale()
    eventually(lambda: posts.transport.publish("posts", [event(3).decode()]) is None, 20)


GREEN = """
from gevent import monkey
monkey.patch_all()
import sys, time
import gevent
from tests.contract.events.brokers import WANTED
from tests.contract.events.rig import connect
posts, stats = connect(sys.argv[1], "posts-1"), connect(sys.argv[2], "stats-1")
stats.receive("stats", WANTED, 10, 0.01)
ticks = 0

def tick():
    global ticks
    while True:
        time.sleep(0.01)
        ticks += 1

gevent.spawn(tick)
for _ in range(20):
    stats.receive("stats", WANTED, 10, 0.1)
assert ticks > 50, f"the process stood still: {ticks}"
found = []
for number in range(20):
    posts.publish("posts", [sys.argv[3]])
while len(found) < 20:
    found += stats.receive("stats", WANTED, 10, 0.1)
stats.acknowledge("stats", found)
assert {each.producer for each in found} == {"posts"}
stats.release("stats")
posts.release("posts")
print("done")
"""


def test_reading_and_publishing_hold_up_nothing_under_gevent(broker: RabbitBroker) -> None:
    argv = [sys.executable, "-c", GREEN, broker.url("posts"), broker.url("stats"), event(1).decode()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\n", done.stderr
