"""The brokers of the session and of a file, empty at the start of each test, and a service on either side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.events.brokers import (
    SERVICES,
    Broker,
    RabbitBroker,
    RedisBroker,
    introduce,
    transport,
)
from tests.contract.events.rig import Producer, Stats, database, file, producer, stats
from tests.support import servers
from tests.support.rabbit import RabbitServer, rabbit


@pytest.fixture(scope="module")
def kept_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.RedisServer]:
    args = ["--appendonly", "yes", "--dir", str(tmp_path_factory.mktemp("broker"))]
    with servers.redis(args=args) as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[RabbitServer]:
    """One for all files that say `shares("rabbitmq")`: it takes seconds to start."""
    with rabbit(SERVICES) as server:
        yield server


@pytest.fixture
def redis_broker(kept_redis: servers.RedisServer) -> RedisBroker:
    broker = RedisBroker(kept_redis)
    broker.clear()
    return broker


@pytest.fixture
def rabbit_broker(rabbit_server: RabbitServer) -> RabbitBroker:
    broker = RabbitBroker(rabbit_server)
    broker.clear()
    return broker


@pytest.fixture(params=["redis", "rabbit"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each test once with Redis, once with RabbitMQ."""
    found: Broker = request.getfixturevalue(f"{request.param}_broker")
    return found


@pytest.fixture
def posts(broker: Broker, tmp_path: Path) -> Iterator[Producer]:
    db, tables, _ = database(file(tmp_path, "posts"))
    one = producer(db, tables, transport(broker, "posts"))
    yield one
    one.transport.release("posts")
    db.dispose()


@pytest.fixture
def counter(broker: Broker, tmp_path: Path) -> Iterator[Stats]:
    introduce(broker)
    db, tables, effects = database(file(tmp_path, "stats"))
    one = stats(db, tables, effects, transport(broker, "stats"), retry_first_s=0.05)
    yield one
    one.transport.release("stats")
    db.dispose()
