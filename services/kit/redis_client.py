"""Redis clients with short times and no hidden retries."""

from __future__ import annotations

from redis import BlockingConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def connect(
    url: str | None,
    password: str | None,
    *,
    timeout_s: float,
    connections: int,
    username: str | None = None,
) -> Redis | None:
    """A client that gives up after `timeout_s` per step and holds at most `connections`; None without a URL.

    Without `username` it is Redis' user `default`. Who and what the URL names comes first.
    Nothing is opened before the first command. The library's default is three retries with backoff per command: off.
    """
    if not url:
        return None
    pool = BlockingConnectionPool.from_url(
        url,
        username=username,
        password=password,
        max_connections=connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    return Redis(connection_pool=pool)
