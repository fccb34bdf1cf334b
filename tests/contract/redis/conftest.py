"""Two instances of the cache on the Redis of a module, as new for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from tests.support.cache_rig import Instance, Origin
from tests.support.servers import RedisServer


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture(scope="module")
def instances(redis_server: RedisServer) -> Iterator[tuple[Instance, Instance]]:
    one, other = Instance(redis_server.url, Origin()), Instance(redis_server.url, Origin())
    yield one, other
    one.stop()
    other.stop()


@pytest.fixture
def pair(redis: Redis, instances: tuple[Instance, Instance], origin: Origin) -> tuple[Instance, Instance]:
    for each in instances:
        each.begin(origin)
    return instances
