"""One Redis for all tests of sharing; each test has a service of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from tests.support.breaker_process import Process, starter
from tests.support.servers import RedisServer, redis


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis() as running:
        yield running


@pytest.fixture
def start(server: RedisServer) -> Iterator[Callable[..., Process]]:
    with starter(server) as start:
        yield start


@pytest.fixture
def raw(server: RedisServer) -> Iterator[Redis]:
    with Redis(port=server.port) as client:
        yield client
