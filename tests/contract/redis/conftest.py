"""One Redis and two instances of the cache for a module, as new for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from tests.support import servers
from tests.support.cache_rig import Instance, Origin


@pytest.fixture(scope="module")
def server() -> Iterator[servers.RedisServer]:
    with servers.redis() as started:
        yield started


@pytest.fixture
def redis(server: servers.RedisServer) -> Iterator[Redis]:
    with Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture(scope="module")
def instances(server: servers.RedisServer) -> Iterator[tuple[Instance, Instance]]:
    one, other = Instance(server.url, Origin()), Instance(server.url, Origin())
    yield one, other
    one.stop()
    other.stop()


@pytest.fixture
def pair(redis: Redis, instances: tuple[Instance, Instance], origin: Origin) -> tuple[Instance, Instance]:
    for each in instances:
        each.begin(origin)
    return instances
