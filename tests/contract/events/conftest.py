"""The broker of a file, empty at the start of each of its tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from tests.support import servers
from tests.support.servers import RedisServer


@pytest.fixture(scope="module")
def kept_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    args = ["--appendonly", "yes", "--dir", str(tmp_path_factory.mktemp("broker"))]
    with servers.redis(args=args) as server:
        yield server


@pytest.fixture
def broker(kept_broker: RedisServer) -> RedisServer:
    with Redis.from_url(kept_broker.url) as redis:
        redis.flushall()
    return kept_broker
