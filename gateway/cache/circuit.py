"""A breaker of the cache's own in front of Redis: one that is gone, hung or not to be written costs one wait, then nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import structlog
from redis import Redis
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    OutOfMemoryError,
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

# So long nothing is asked after a failure. The link's heartbeats shorten it, or keep it up.
OPEN_S = 1.0
# Answers of a Redis that can be read at best: what cannot be written cannot be invalidated, so it is not to be read either.
UNFIT = (
    "READONLY",
    "NOREPLICAS",
    "MISCONF",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "LOADING",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
)


class Away(Exception):
    """Redis is not to be had now, or did not do what it was asked."""


class Circuit:
    """Runs Redis operations while Redis is well. Thread-safe."""

    def __init__(self, redis: Redis | None, monotonic: Callable[[], float]) -> None:
        self._redis = redis
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._until = 0.0
        self._opened = False

    @property
    def closed(self) -> bool:
        return self._redis is not None and self._monotonic() >= self._until

    def run(self, action: Callable[[Redis], T]) -> T:
        """Do it, once. Raises Away."""
        if self._redis is None or self._monotonic() < self._until:
            raise Away
        return self.attempt(action)

    def attempt(self, action: Callable[[Redis], T]) -> T:
        """As `run`, even while the circuit is open. Raises Away."""
        if self._redis is None:
            raise Away
        try:
            return action(self._redis)
        except (RedisError, OSError) as error:
            if unfit(error):
                self.open(error)
            raise Away from error

    def open(self, cause: Exception | str) -> None:
        with self._lock:
            self._until = self._monotonic() + OPEN_S
            told, self._opened = self._opened, True
        if not told:
            log.warning("cache away", error=cause if isinstance(cause, str) else type(cause).__name__)

    def close(self) -> None:
        with self._lock:
            self._until = 0.0
            told, self._opened = self._opened, False
        if told:
            log.info("cache back")


def unfit(error: Exception) -> bool:
    """Whether an error says that Redis itself is not well, and not this one operation."""
    if isinstance(error, OutOfMemoryError):
        return False
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        # All connections in use: a burst of ours, no fault of Redis.
        return "No connection available" not in str(error)
    if isinstance(error, ResponseError):
        return refuses(str(error)) or type(error).__name__ in ("ReadOnlyError", "NoPermissionError")
    return isinstance(error, OSError)


def refuses(text: str) -> bool:
    return text.lstrip("-").startswith(UNFIT)
