"""Redis clients with short times and no hidden retries, and the circuit before a Redis that may be away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from redis import BlockingConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Nothing is sent for so long after Redis was found to be away.
OPEN_S = 1.0
# Answers of a Redis that can be read at best: what cannot be written cannot be invalidated, so it must not be read either.
REFUSALS = (
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


def connect(
    url: str | None,
    password: str | None,
    *,
    timeout_s: float,
    connections: int,
    username: str | None = None,
) -> Redis | None:
    """A client that gives up after `timeout_s` per step and holds at most `connections`; None without a URL.

    Without `username` it is Redis' user `default`. User and password in the URL come first.
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


class Away(Exception):
    """Redis cannot be reached now, or did not do what was asked."""


class Circuit:
    """Runs commands while Redis works, so that a Redis that is gone or hangs costs one wait, and then nothing. Thread-safe.

    After `failures` in a row it opens for `OPEN_S`; then one caller tries, and closes it by succeeding. A `tended` one waits for
    `close`: that a Redis can be read does not say that it takes what is written. Without a Redis it is always open. The log
    names `purpose`, once per change.
    """

    def __init__(
        self,
        redis: Redis | None,
        purpose: str,
        *,
        failures: int = 1,
        tended: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._purpose = purpose
        self._most_failures = failures
        self._tended = tended
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._until = 0.0
        self._failures = 0
        self._opened = False
        self._openings = 0

    @property
    def exists(self) -> bool:
        """Whether there is a Redis at all."""
        return self._redis is not None

    @property
    def closed(self) -> bool:
        """Whether the next command would be sent."""
        return self._redis is not None and not self._keeps_out(self._monotonic())

    def run(self, action: Callable[[Redis], T]) -> T:
        """Run commands once. Raises Away: at once while the circuit is open.

        Where `action` itself raises Away, that counts as a failure of Redis.
        """
        with self._lock:
            now = self._monotonic()
            if self._redis is None or self._keeps_out(now):
                raise Away
            if self._opened:
                self._until = now + OPEN_S  # the others do not wait for this trial
            openings = self._openings
        result = self.attempt(action)
        if self._opened or self._failures:
            with self._lock:
                # What was opened in the meantime stays open: its reason is newer than this success.
                if self._openings == openings:
                    self._close()
        return result

    def attempt(self, action: Callable[[Redis], T]) -> T:
        """As `run`, even while the circuit is open, and without closing it. Raises Away."""
        if self._redis is None:
            raise Away
        try:
            return action(self._redis)
        except Away as error:
            self._fail(error)
            raise
        except (RedisError, OSError) as error:
            if is_unwell(error):
                self._fail(error)
            raise Away(str(error)) from error

    def open(self, cause: Exception | str) -> None:
        """Send nothing for `OPEN_S`."""
        with self._lock:
            self._open(cause)

    def close(self) -> None:
        """Redis works again."""
        with self._lock:
            self._close()

    def _keeps_out(self, now: float) -> bool:
        return now < self._until or (self._tended and self._opened)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= self._most_failures:
                self._open(error)

    def _open(self, cause: Exception | str) -> None:
        self._until = self._monotonic() + OPEN_S
        self._openings += 1
        if not self._opened:
            self._opened = True
            error = cause if isinstance(cause, str) else type(cause).__name__
            log.warning("redis away", purpose=self._purpose, error=error, reason=str(cause)[:200])

    def _close(self) -> None:
        self._until, self._failures = 0.0, 0
        if self._opened:
            self._opened = False
            log.info("redis back", purpose=self._purpose)


def is_unwell(error: Exception) -> bool:
    """Whether an error says that Redis itself is in trouble, and not this one command."""
    if isinstance(error, OutOfMemoryError):
        return False
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        # All connections in use: a burst of ours, no fault of Redis.
        return "No connection available" not in str(error)
    if isinstance(error, ResponseError):
        return is_refusal(str(error)) or isinstance(error, ReadOnlyError | NoPermissionError)
    return isinstance(error, OSError)


def is_refusal(text: str) -> bool:
    """Whether a script got such an answer, from a Redis in trouble."""
    return text.lstrip("-").startswith(REFUSALS)
