"""Events from one service's database to another's, over a real Redis: once each, in order, whatever is killed."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from redis import Redis
from sqlalchemy import create_engine, func, inspect, select

from services.kit.events import redis_streams
from services.kit.events.event import new_id, read, wrap
from services.kit.events.publisher import KEPT_S, Publisher
from services.kit.events.redis_streams import RedisStreams, stream_of
from services.kit.events.tables import create_event_tables, drop_event_tables
from services.kit.events.transport import Delivery
from services.kit.redis_client import Away
from services.kit.text import now_us
from services.kit.web.context import Caller, set_current
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
    streams,
)
from tests.support.clock import ManualClock
from tests.support.eventually import eventually, time_scale
from tests.support.servers import RedisServer


@pytest.fixture
def posts(broker: RedisServer, tmp_path: Path) -> Iterator[Producer]:
    db, tables, _ = database(file(tmp_path, "posts"))
    yield producer(db, tables, streams(broker.url, "posts-1"))
    db.dispose()


@pytest.fixture
def counter(broker: RedisServer, tmp_path: Path) -> Iterator[Stats]:
    db, tables, effects = database(file(tmp_path, "stats"))
    yield stats(db, tables, effects, streams(broker.url, "stats-1"), retry_first_s=0.05)
    db.dispose()


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


def test_second_delivery_has_no_effect(broker: RedisServer, posts: Producer, counter: Stats) -> None:
    with Redis.from_url(broker.url) as redis, relaying(posts):
        posts.publish("a", 1, 2)
        eventually(lambda: posts.unsent() == 0, 10)
        for _, fields in redis.xrange(stream_of("posts")):
            redis.xadd(stream_of("posts"), fields)
        with counter.running():
            posts.publish("b", 1)
            eventually(lambda: ("b", 1) in counter.seen(), 10)
    assert counter.seen() == [("a", 1), ("a", 2), ("b", 1)]


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


@pytest.mark.parametrize("body", NO_EVENTS, ids=range(len(NO_EVENTS)))
def test_what_is_no_event_goes_to_the_dead_letters(
    broker: RedisServer, posts: Producer, counter: Stats, body: bytes
) -> None:
    with Redis.from_url(broker.url) as redis:
        redis.xadd(stream_of("posts"), {"e": body} if body else {"x": "y"})
    with relaying(posts), counter.running():
        posts.publish("a", 1)
        eventually(lambda: counter.seen() == [("a", 1)], 10)
    assert [letter.body for letter in counter.transport.dead("stats", 10)] == [body]


@pytest.mark.parametrize(("stream", "source"), [("users", "posts"), ("users", "users"), ("posts", "users")])
def test_event_that_another_service_makes_up_has_no_effect(
    broker: RedisServer, posts: Producer, counter: Stats, stream: str, source: str
) -> None:
    counter.consumer.consumes(UserDeleted)(lambda *_: None)
    made_up = wrap(PostPublished(postId="a", number=1), now_us()).to_json()
    with Redis.from_url(broker.url) as redis:
        redis.xadd(stream_of(stream), {"e": made_up.replace("/services/posts", f"/services/{source}")})
    with relaying(posts), counter.running():
        posts.publish("b", 1)
        eventually(counter.count, 10)
        time.sleep(0.3)
    assert counter.seen() == [("b", 1)]


class Torn(RedisStreams):
    """Loses the broker's first answer with something in it on its way: the broker has delivered, and nothing has come."""

    torn = False

    def receive(self, service: str, producers: Sequence[str], limit: int, wait_s: float) -> list[Delivery]:
        found = super().receive(service, producers, limit, wait_s)
        if found and not self.torn:
            self.torn = True
            raise Away("the answer is lost")
        return found


def test_answer_of_the_broker_that_is_lost_loses_no_event(
    broker: RedisServer, posts: Producer, tmp_path: Path
) -> None:
    db, tables, effects = database(file(tmp_path, "torn"))
    transport = Torn(Redis.from_url(broker.url, socket_timeout=3), "stats-1")
    counter = stats(db, tables, effects, transport)
    with relaying(posts), counter.running():
        posts.publish("a", 1)
        eventually(lambda: transport.torn, 10)
        posts.publish("a", 2)
        eventually(lambda: counter.seen() == [("a", 1), ("a", 2)], 10)
    db.dispose()


def test_full_stream_takes_no_more_until_it_is_acknowledged_and_nothing_is_lost(
    broker: RedisServer, posts: Producer, counter: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_streams, "MAX_LENGTH", 200)
    assert counter.transport.receive("stats", ["posts"], 1, 0.1) == []  # its group is there
    with Redis.from_url(broker.url) as redis, relaying(posts):
        for number in range(1, 1001):
            posts.publish("a", number)
        eventually(lambda: redis.xlen(stream_of("posts")) >= 200, 10)
        time.sleep(1.5)
        assert posts.unsent() > 0
        assert redis.xlen(stream_of("posts")) < 1000
        with counter.running():
            eventually(lambda: counter.count() == 1000, 30)
    assert in_order(counter.seen())


def test_stream_that_nobody_reads_stays_short(
    broker: RedisServer, posts: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_streams, "MAX_LENGTH", 200)
    with Redis.from_url(broker.url) as redis, relaying(posts):
        for number in range(1, 1001):
            posts.publish("a", number)
        eventually(lambda: posts.unsent() == 0, 20)
        assert redis.xlen(stream_of("posts")) < 600


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


def test_event_goes_on_with_the_trace_of_its_request(broker: RedisServer, posts: Producer) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    set_current(Caller(traceparent=trace))
    try:
        posts.publish("a", 1)
    finally:
        set_current(None)
    posts.publisher.turn()
    with Redis.from_url(broker.url) as redis:
        ((_, fields),) = redis.xrange(stream_of("posts"))
    assert read(fields[b"e"]).traceparent[:35] == trace[:35]


def test_sent_rows_are_deleted_after_a_day_and_unsent_ones_are_not(
    broker: RedisServer, tmp_path: Path
) -> None:
    db, tables, _ = database(file(tmp_path, "old"))
    clock = ManualClock(time.time())
    publisher = Publisher(db, tables, "posts", "posts-1", streams(broker.url, "posts-1"), clock=clock)

    def rows() -> int:
        with db.session(read_only=True) as session:
            return int(session.scalar(select(func.count()).select_from(tables.published)) or 0)

    with db.session():
        publisher.publish(PostPublished(postId="a", number=1))
    publisher.turn()
    with db.session():
        publisher.publish(PostPublished(postId="a", number=2))
    clock.sleep(KEPT_S - 60)
    publisher._tidy()
    assert rows() == 2
    clock.sleep(120)
    publisher._tidy()
    assert rows() == 1
    assert publisher.backlog().length == 1
    db.dispose()


def test_migration_makes_and_takes_away_the_tables(tmp_path: Path) -> None:
    engine = create_engine(file(tmp_path, "migrated"))
    with engine.begin() as connection:
        operations = Operations(MigrationContext.configure(connection))
        create_event_tables(operations)
        made = set(inspect(connection).get_table_names())
        drop_event_tables(operations)
        assert made == {"events_published", "events_relay", "events_consumed", "events_parked"}
        assert inspect(connection).get_table_names() == []
    engine.dispose()


def test_nothing_is_published_in_a_session_that_reads(posts: Producer) -> None:
    with pytest.raises(RuntimeError, match="inside of"), posts.db.session(read_only=True):
        posts.publisher.publish(PostPublished(postId="a", number=1))


def test_two_relays_send_each_event_and_no_subject_out_of_order(
    broker: RedisServer, posts: Producer, counter: Stats, tmp_path: Path
) -> None:
    db, tables, _ = database(file(tmp_path, "posts"))
    other = producer(db, tables, streams(broker.url, "posts-2"), "posts-2")
    with relaying(posts, other), counter.running():
        for number in range(1, 41):
            (posts, other)[number % 2].publish("a", number)
        eventually(lambda: counter.count() == 40, 20)
    db.dispose()
    assert in_order(counter.seen())


def test_two_consumers_share_no_stream_and_the_second_takes_over(
    broker: RedisServer, posts: Producer, counter: Stats, tmp_path: Path
) -> None:
    db, tables, effects = database(file(tmp_path, "stats"))
    second = stats(db, tables, effects, streams(broker.url, "stats-2"))
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
    broker: RedisServer, posts: Producer, counter: Stats
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
        broker.start()
        eventually(lambda: counter.count() == 21, 20)
    assert in_order(counter.seen())


def test_acknowledged_entries_are_trimmed_and_others_are_not(
    broker: RedisServer, posts: Producer, counter: Stats
) -> None:
    with Redis.from_url(broker.url) as redis:
        with relaying(posts), counter.running():
            for number in range(1, 301):
                posts.publish("a", number)
            eventually(lambda: counter.count() == 300, 20)
        redis.xgroup_create(stream_of("posts"), "slow", id="0")
        # The relay tidies by itself, too.
        held = redis.xlen(stream_of("posts"))
        posts.publisher._transport.tidy("posts")
        assert redis.xlen(stream_of("posts")) == held > 200, "another group has not read them"
        redis.xgroup_destroy(stream_of("posts"), "slow")
        posts.publisher._transport.tidy("posts")
        assert redis.xlen(stream_of("posts")) < 300


def test_entry_trimmed_while_it_was_pending_is_given_up_and_not_looped_on(
    broker: RedisServer, posts: Producer, counter: Stats
) -> None:
    with Redis.from_url(broker.url) as redis, relaying(posts):
        posts.publish("a", 1, 2)
        eventually(lambda: posts.unsent() == 0, 10)
        received = [counter.transport.receive("stats", ["posts"], 10, 0.1) for _ in range(2)]
        assert sum(map(len, received)) == 2
        redis.xtrim(stream_of("posts"), maxlen=1, approximate=False)
        counter.transport.again()
        with counter.running():
            posts.publish("a", 3)
            eventually(lambda: counter.seen() == [("a", 2), ("a", 3)], 10)
        assert redis.xpending(stream_of("posts"), "stats")["pending"] == 0


def test_lost_broker_is_said(broker: RedisServer, counter: Stats) -> None:
    broker.kill()
    try:
        with pytest.raises(Away):
            counter.transport.receive("stats", ["posts"], 10, 0.1)
    finally:
        broker.start()


def test_ids_are_of_version_7_and_grow() -> None:
    ids = [new_id(us * 1000) for us in range(1_700_000_000_000, 1_700_000_000_050)]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(each).version for each in ids} == {7}
    assert {uuid.UUID(each).variant for each in ids} == {uuid.RFC_4122}
