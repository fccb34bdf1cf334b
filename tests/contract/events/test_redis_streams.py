"""What is Redis' own in carrying events: streams that are trimmed, never past what a service needs. And what needs no broker."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine, func, inspect, select

from services.kit.events import redis_streams
from services.kit.events.event import new_id, read
from services.kit.events.publisher import KEPT_S, Publisher
from services.kit.events.redis_streams import stream_of
from services.kit.events.tables import create_event_tables, drop_event_tables
from services.kit.web.context import Caller, set_current
from tests.contract.events.brokers import WANTED, RedisBroker, transport
from tests.contract.events.rig import PostPublished, Producer, Stats, database, file, in_order, relaying
from tests.support.clock import ManualClock
from tests.support.eventually import eventually


@pytest.fixture
def broker(redis_broker: RedisBroker) -> RedisBroker:
    """Of the brokers this one."""
    return redis_broker


def test_full_stream_takes_no_more_until_it_is_acknowledged_and_nothing_is_lost(
    broker: RedisBroker, posts: Producer, counter: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_streams, "MAX_LENGTH", 200)
    with broker.client() as redis, relaying(posts):
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
    broker: RedisBroker, posts: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_streams, "MAX_LENGTH", 200)
    with broker.client() as redis, relaying(posts):
        for number in range(1, 1001):
            posts.publish("a", number)
        eventually(lambda: posts.unsent() == 0, 20)
        assert redis.xlen(stream_of("posts")) < 600


def test_event_goes_on_with_the_trace_of_its_request(broker: RedisBroker, posts: Producer) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    set_current(Caller(traceparent=trace))
    try:
        posts.publish("a", 1)
    finally:
        set_current(None)
    posts.publisher.turn()
    with broker.client() as redis:
        ((_, fields),) = redis.xrange(stream_of("posts"))
    assert read(fields[b"e"]).traceparent[:35] == trace[:35]


def test_sent_rows_are_deleted_after_a_day_and_unsent_ones_are_not(
    broker: RedisBroker, tmp_path: Path
) -> None:
    db, tables, _ = database(file(tmp_path, "old"))
    clock = ManualClock(time.time())
    publisher = Publisher(db, tables, "posts", "posts-1", transport(broker, "posts"), clock=clock)

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


def test_acknowledged_entries_are_trimmed_and_others_are_not(
    broker: RedisBroker, posts: Producer, counter: Stats
) -> None:
    with broker.client() as redis:
        with relaying(posts), counter.running():
            for number in range(1, 301):
                posts.publish("a", number)
            eventually(lambda: counter.count() == 300, 20)
        redis.xgroup_create(stream_of("posts"), "slow", id="0")
        # The relay tidies by itself, too.
        held = redis.xlen(stream_of("posts"))
        posts.transport.tidy("posts")
        assert redis.xlen(stream_of("posts")) == held > 200, "another group has not read them"
        redis.xgroup_destroy(stream_of("posts"), "slow")
        posts.transport.tidy("posts")
        assert redis.xlen(stream_of("posts")) < 300


def test_entry_trimmed_while_it_was_pending_is_given_up_and_not_looped_on(
    broker: RedisBroker, posts: Producer, counter: Stats
) -> None:
    with broker.client() as redis, relaying(posts):
        posts.publish("a", 1, 2)
        eventually(lambda: posts.unsent() == 0, 10)
        received = [counter.transport.receive("stats", WANTED, 10, 0.1) for _ in range(2)]
        assert sum(map(len, received)) == 2
        redis.xtrim(stream_of("posts"), maxlen=1, approximate=False)
        counter.transport.again()
        with counter.running():
            posts.publish("a", 3)
            eventually(lambda: counter.seen() == [("a", 2), ("a", 3)], 10)
        assert redis.xpending(stream_of("posts"), "stats")["pending"] == 0


def test_ids_are_of_version_7_and_grow() -> None:
    ids = [new_id(us * 1000) for us in range(1_700_000_000_000, 1_700_000_000_050)]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(each).version for each in ids} == {7}
    assert {uuid.UUID(each).variant for each in ids} == {uuid.RFC_4122}
