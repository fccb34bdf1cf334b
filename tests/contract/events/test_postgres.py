"""Events between databases of PostgreSQL, where transactions commit in another sequence than they were numbered."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy.engine import make_url

from tests.contract.events.brokers import RedisBroker, transport
from tests.contract.events.rig import (
    PostPublished,
    Producer,
    Stats,
    database,
    producer,
    relaying,
    stats,
)
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer


@pytest.fixture
def both(redis_broker: RedisBroker, postgres_server: PostgresServer) -> Iterator[tuple[Producer, Stats]]:
    urls = [make_url(postgres_server.database()).set(drivername="postgresql+psycopg") for _ in range(2)]
    (db, tables, _), (other, others, effects) = map(database, urls)
    yield (
        producer(db, tables, transport(redis_broker, "posts")),
        stats(other, others, effects, transport(redis_broker, "stats"), retry_first_s=0.05),
    )
    db.dispose()
    other.dispose()


def test_event_that_is_committed_after_one_of_a_higher_number_is_not_passed_over(
    both: tuple[Producer, Stats],
) -> None:
    posts, counter = both
    with relaying(posts), counter.running():
        with posts.db.session():
            posts.publisher.publish(PostPublished(postId="slow", number=1))
            worker = threading.Thread(target=posts.publish, args=("quick", 2))
            worker.start()
            worker.join(10)
            eventually(lambda: counter.seen() == [("quick", 2)], 10)
        eventually(lambda: counter.seen() == [("quick", 2), ("slow", 1)], 10)


def test_events_of_one_subject_are_numbered_in_the_sequence_of_their_commits(
    both: tuple[Producer, Stats],
) -> None:
    posts, counter = both
    with relaying(posts), counter.running():
        with posts.db.session():
            posts.publisher.publish(PostPublished(postId="a", number=1))
            worker = threading.Thread(target=posts.publish, args=("a", 2))
            worker.start()
            worker.join(0.5)
            assert worker.is_alive(), "the second does not wait for the first"
        worker.join(10)
        eventually(lambda: counter.seen() == [("a", 1), ("a", 2)], 10)


def test_failing_and_poison_events_go_their_way(both: tuple[Producer, Stats]) -> None:
    posts, counter = both
    counter.refuses = {("a", 1): 2, ("b", 1): 1000}
    with relaying(posts), counter.running():
        posts.publish("a", 1, 2)
        posts.publish("b", 1, 2)
        posts.publish("c", 1)
        eventually(lambda: counter.count() == 4, 15)
    assert sorted(counter.seen()) == [("a", 1), ("a", 2), ("b", 2), ("c", 1)]
    assert len(counter.transport.dead("stats", 10)) == 1
