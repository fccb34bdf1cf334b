"""Events from one service's database to another's, over each of the real brokers: once each, in order, whatever happens."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from services.kit.events.event import read, wrap
from services.kit.events.transport import Delivery, Transport
from services.kit.redis_client import Away
from services.kit.text import now_us
from tests.contract.events.brokers import WANTED, Broker, introduce, transport
from tests.contract.events.rig import (
    PostPublished,
    Producer,
    Stats,
    UserDeleted,
    database,
    file,
    in_order,
    producer,
    relaying,
    stats,
)
from tests.support.eventually import eventually, time_scale

pytestmark = pytest.mark.shares("rabbitmq")


def test_what_is_committed_arrives_once_and_in_order(posts: Producer, counter: Stats) -> None:
    with relaying(posts), counter.running():
        for number in range(1, 31):
            posts.publish(f"post-{number % 3}", number)
        eventually(lambda: counter.count() == 30, 10)
    assert in_order(counter.seen())
    assert posts.unsent() == 0


def test_what_is_rolled_back_does_not_arrive(posts: Producer, counter: Stats) -> None:
    with relaying(posts), counter.running():
        with contextlib.suppress(ZeroDivisionError), posts.db.session():
            posts.publisher.publish(PostPublished(postId="a", number=1))
            raise ZeroDivisionError
        posts.publish("a", 2)
        eventually(counter.count, 10)
    assert counter.seen() == [("a", 2)]


def test_event_belongs_to_a_session_and_to_its_service(posts: Producer, counter: Stats) -> None:
    with pytest.raises(RuntimeError, match="inside of"):
        posts.publisher.publish(PostPublished(postId="a", number=1))
    posts.publisher._service = "users"
    with pytest.raises(ValueError, match="an event of posts"), posts.db.session():
        posts.publisher.publish(PostPublished(postId="a", number=1))


def test_commit_wakes_the_relay(posts: Producer, counter: Stats) -> None:
    with relaying(posts), counter.running():
        posts.publish("warm", 1)
        eventually(counter.count, 10)
        took = []
        for number in range(2, 7):
            began = time.monotonic()
            posts.publish("a", number)
            eventually(lambda number=number: counter.count() == number, 10, every_s=0.005)
            took.append(time.monotonic() - began)
    assert sorted(took)[2] < 0.3 * time_scale()


def test_second_delivery_has_no_effect(posts: Producer, counter: Stats) -> None:
    body = wrap(PostPublished(postId="a", number=1), now_us()).to_json()
    posts.transport.publish("posts", [body, body])
    with relaying(posts), counter.running():
        eventually(lambda: counter.seen() == [("a", 1)], 10)
        posts.transport.publish("posts", [body])
        posts.publish("b", 1)
        eventually(lambda: ("b", 1) in counter.seen(), 10)
    assert counter.seen() == [("a", 1), ("b", 1)]


def test_failing_event_holds_up_its_subject_alone(posts: Producer, counter: Stats) -> None:
    counter.refuses[("a", 1)] = 3
    with relaying(posts), counter.running():
        posts.publish("a", 1, 2)
        posts.publish("b", 1)
        eventually(lambda: counter.count() == 3, 10)
    assert counter.seen() == [("b", 1), ("a", 1), ("a", 2)]
    assert counter.tried.count(("a", 1)) == 4


def test_poison_message_goes_to_the_dead_letters_and_the_next_of_its_subject_comes(
    posts: Producer, counter: Stats
) -> None:
    counter.refuses[("a", 1)] = 1000
    with relaying(posts), counter.running():
        posts.publish("a", 1, 2)
        eventually(lambda: counter.seen() == [("a", 2)], 10)
    assert counter.tried.count(("a", 1)) == 5
    (letter,) = counter.transport.dead("stats", 10)
    assert letter.reason == "ValueError: refused"
    assert read(letter.body).data == {"postId": "a", "number": 1}
    counter.transport.forget_dead("stats", [letter.handle])
    assert counter.transport.dead("stats", 10) == []


def test_replayed_dead_letter_has_its_effect_once_and_is_let_go_of(
    broker: Broker, posts: Producer, counter: Stats
) -> None:
    body = wrap(PostPublished(postId="a", number=1), now_us()).to_json().encode()
    counter.transport.bury("stats", body, "why")
    operator = transport(broker, "operator")
    (letter,) = operator.dead("stats", 10)
    with relaying(posts), counter.running():
        posts.publish("b", 1)
        eventually(counter.count, 10)
        for _ in range(2):
            operator.replay("stats", letter)
        eventually(lambda: counter.count() == 2 and not operator.dead("stats", 10), 10, every_s=0.3)
        posts.publish("b", 2)
        eventually(lambda: ("b", 2) in counter.seen(), 10)
    assert counter.seen() == [("b", 1), ("a", 1), ("b", 2)]
    operator.release("stats")


def no_event(**changes: object) -> bytes:
    """A CloudEvent that no table can take, or that is another thing than it says."""
    made = json.loads(wrap(PostPublished(postId="a", number=1), now_us()).to_json())
    return json.dumps(made | changes).encode()


NO_EVENTS = [
    b"",
    b"{",
    b"[]",
    b'{"specversion":"1.0"}',
    b"null",
    b"\xed\xa0\x80",
    b"[" * 100_000,
    no_event().decode().encode("utf-16"),
    no_event(id="x" * 65),
    no_event(id="\0"),
    no_event(subject="x" * 129),
    no_event(subject="\ud800"),
    no_event(subject=""),
]


def test_what_is_no_event_goes_to_the_dead_letters(broker: Broker, posts: Producer, counter: Stats) -> None:
    broker.put("posts", *NO_EVENTS)
    with relaying(posts), counter.running():
        posts.publish("a", 1)
        eventually(lambda: counter.seen() == [("a", 1)], 10)
    letters = counter.transport.dead("stats", 100)
    assert [letter.body for letter in letters] == NO_EVENTS
    assert all(letter.reason.startswith("not understood") for letter in letters)
    assert counter.transport.dead("stats", 3) == letters[:3], "looking takes nothing away"
    counter.transport.forget_dead("stats", [letter.handle for letter in letters[1:3]])
    assert counter.transport.dead("stats", 100) == [letters[0], *letters[3:]]


@pytest.mark.parametrize(("by", "source"), [("users", "posts"), ("users", "users"), ("posts", "users")])
def test_event_that_another_service_makes_up_has_no_effect(
    broker: Broker, posts: Producer, counter: Stats, by: str, source: str
) -> None:
    counter.consumer.consumes(UserDeleted)(lambda *_: None)
    made_up = wrap(PostPublished(postId="a", number=1), now_us()).to_json()
    broker.put(by, made_up.replace("/services/posts", f"/services/{source}").encode())
    with relaying(posts), counter.running():
        posts.publish("b", 1)
        eventually(counter.count, 10)
        time.sleep(0.3)
    assert counter.seen() == [("b", 1)]


class Torn:
    """Loses the broker's first answer with something in it on its way: the broker has delivered, and nothing has come."""

    def __init__(self, real: Transport) -> None:
        self.real = real
        self.torn = False

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def receive(
        self, service: str, wanted: Mapping[str, Sequence[str]], limit: int, wait_s: float
    ) -> list[Delivery]:
        found = self.real.receive(service, wanted, limit, wait_s)
        if found and not self.torn:
            self.torn = True
            raise Away("the answer is lost")
        return found


def test_answer_of_the_broker_that_is_lost_loses_no_event(
    broker: Broker, posts: Producer, tmp_path: Path
) -> None:
    introduce(broker)
    db, tables, effects = database(file(tmp_path, "torn"))
    torn = Torn(transport(broker, "stats"))
    counter = stats(db, tables, effects, torn)
    with relaying(posts), counter.running():
        posts.publish("a", 1)
        eventually(lambda: torn.torn, 10)
        posts.publish("a", 2)
        eventually(lambda: counter.seen() == [("a", 1), ("a", 2)], 10)
    db.dispose()


def test_locked_database_of_a_consumer_loses_no_event(
    posts: Producer, counter: Stats, tmp_path: Path
) -> None:
    with relaying(posts), counter.running():
        posts.publish("a", 1)
        eventually(counter.count, 10)
        with sqlite3.connect(tmp_path / "stats.db", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            posts.publish("a", 2)
            eventually(lambda: counter.consumer.loops[0].failing, 10)
            other.execute("ROLLBACK")
        eventually(lambda: counter.seen() == [("a", 1), ("a", 2)], 15)
    assert counter.transport.dead("stats", 10) == []


def test_two_relays_send_each_event_and_no_subject_out_of_order(
    broker: Broker, posts: Producer, counter: Stats, tmp_path: Path
) -> None:
    db, tables, _ = database(file(tmp_path, "posts"))
    other = producer(db, tables, transport(broker, "posts", 2), "posts-2")
    with relaying(posts, other), counter.running():
        for number in range(1, 41):
            (posts, other)[number % 2].publish("a", number)
        eventually(lambda: counter.count() == 40, 20)
    db.dispose()
    assert in_order(counter.seen())


def test_two_consumers_share_no_stream_and_the_second_takes_over(
    broker: Broker, posts: Producer, counter: Stats, tmp_path: Path
) -> None:
    db, tables, effects = database(file(tmp_path, "stats"))
    second = stats(db, tables, effects, transport(broker, "stats", 2))
    with relaying(posts), counter.running():
        posts.publish("a", 1)
        eventually(counter.count, 10)
        with second.running():
            posts.publish("a", 2, 3)
            eventually(lambda: counter.count() == 3, 10)
            assert second.tried == []
            counter.consumer.stop(5)
            posts.publish("a", 4)
            eventually(lambda: second.tried == [("a", 4)], 10)
    db.dispose()
    assert in_order(counter.seen())


def test_away_broker_costs_publishers_nothing_and_all_arrives_later(
    broker: Broker, posts: Producer, counter: Stats
) -> None:
    with relaying(posts), counter.running():
        posts.publish("a", 1)
        eventually(counter.count, 10)
        broker.kill()
        began = time.monotonic()
        for number in range(2, 22):
            posts.publish("a", number)
        assert time.monotonic() - began < 1.0 * time_scale()
        assert posts.unsent() == 20
        assert posts.publisher.backlog().age_s > 0
        with pytest.raises(Away):
            transport(broker, "stats", 2).receive("stats", WANTED, 10, 0.1)
        with pytest.raises(Away):
            counter.transport.dead("stats", 10)
        broker.start()
        eventually(lambda: counter.count() == 21, 20)
    assert in_order(counter.seen())
