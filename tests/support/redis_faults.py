"""A Redis that does not serve, each way for as long as a context lasts. What it gives says whether the fault is there."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

from redis import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError

from tests.support.servers import RedisServer

Fault = Callable[[RedisServer], contextlib.AbstractContextManager[Callable[[], bool]]]


@contextlib.contextmanager
def killed(server: RedisServer) -> Iterator[Callable[[], bool]]:
    server.kill()
    try:
        yield lambda: not server.process.running
    finally:
        server.start()


@contextlib.contextmanager
def hung(server: RedisServer) -> Iterator[Callable[[], bool]]:
    server.process.signal(signal.SIGSTOP)

    def silent() -> bool:
        with (
            contextlib.suppress(OSError),
            Redis(port=server.port, socket_timeout=0.05, retry=None) as probe,
        ):
            try:
                probe.ping()
            except Exception:
                return True
        return False

    try:
        yield silent
    finally:
        server.process.signal(signal.SIGCONT)


@contextlib.contextmanager
def full(server: RedisServer) -> Iterator[Callable[[], bool]]:
    with Redis(port=server.port) as redis:
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("maxmemory", "1")
        try:
            yield lambda: _refuses(redis, OutOfMemoryError)
        finally:
            redis.config_set("maxmemory", "0")


@contextlib.contextmanager
def replica(server: RedisServer) -> Iterator[Callable[[], bool]]:
    """As after a failover that the gateway has not heard of: it answers, and takes nothing."""
    with Redis(port=server.port) as redis:
        redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            yield lambda: _refuses(redis, ReadOnlyError)
        finally:
            redis.execute_command("REPLICAOF", "NO", "ONE")


def _refuses(redis: Redis, error: type[Exception]) -> bool:
    try:
        redis.set("a", "b")
    except error:
        return True
    return False


FAULTS = [killed, hung, full, replica]
