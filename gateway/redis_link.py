"""The way to Redis for what gateways tell each other: commands behind a circuit of their own, and a subscription that comes back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import structlog
from redis import Redis
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

T = TypeVar("T")

# For each step of a client that a Line is given: no call waits for it, and a busy process must not take itself for a dead Redis.
TIMEOUT_S = 0.5
FAILURES_TO_OPEN = 3
OPEN_S = 1.0
# A subscription says nothing while nothing happens: it is pinged, and taken for dead when it answers no more.
PING_S = 1.0
SILENT_S = 3.0
_RETRY_S = 0.5


class Away(Exception):
    """Redis is not to be had now."""


class Line:
    """Thread-safe. A client of its own, for a subscription keeps one connection for good; without any, Redis is always away."""

    def __init__(self, redis: Redis | None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0
        self._refusal = ""
        self.hearing = False

    @property
    def exists(self) -> bool:
        return self._redis is not None

    def run(self, action: Callable[[Redis], T]) -> T:
        """Run commands; while Redis is away that is said at once, but for one trial a second. Raises Away."""
        with self._lock:
            now = self._monotonic()
            if self._redis is None or now < self._open_until:
                raise Away
            if self._failures >= FAILURES_TO_OPEN:
                self._open_until = now + OPEN_S
        try:
            result = action(self._redis)
        except (RedisError, OSError) as error:
            self._failed(error)
            raise Away from error
        with self._lock:
            was_open = self._failures >= FAILURES_TO_OPEN
            self._failures, self._open_until = 0, 0.0
        if was_open:
            log.info("sharing of breakers is back")
        return result

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            if self._failures >= FAILURES_TO_OPEN:
                self._open_until = self._monotonic() + OPEN_S
            opened = self._failures == FAILURES_TO_OPEN
        if opened:
            log.warning("breakers are not shared: redis away", error=type(error).__name__)

    def read(self, keys: Sequence[str], most: int) -> list[bytes | None]:
        """The values of keys, None for one that is not there; of a long one, one byte more than `most`. Raises Away."""

        def fetch(redis: Redis) -> list[Any]:
            with redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.getrange(key, 0, most)
                return pipe.execute(raise_on_error=False)

        found = self.run(fetch) if keys else []
        return [value if isinstance(value, bytes) and value else None for value in found]

    def write(self, *commands: Callable[[Any], object]) -> None:
        """Send commands (called with a pipeline) in one go. A command that Redis refuses holds up none of the others. Raises Away.

        A full or read-only Redis refuses to store, and still passes on what is published.
        """

        def send(redis: Redis) -> list[Any]:
            with redis.pipeline(transaction=False) as pipe:
                for command in commands:
                    command(pipe)
                return pipe.execute(raise_on_error=False)

        refusal = next((str(each) for each in self.run(send) if isinstance(each, Exception)), "")
        if refusal and refusal != self._refusal:
            log.warning("redis takes no news of breakers", reason=refusal[:200])
        self._refusal = refusal

    def follow(
        self,
        channels: Iterable[str],
        *,
        stopped: threading.Event,
        begun: Callable[[], None],
        heard: Callable[[str, bytes], None],
    ) -> None:
        """Pass on what is said on the channels until `stopped`. After every subscription `begun` is called: something may have been missed."""
        names = list(channels)
        while self._redis is not None and not stopped.is_set():
            try:
                self._follow(self._redis, names, stopped, begun, heard)
            except (RedisError, OSError) as error:
                if self.hearing:
                    log.warning("news of breakers lost", error=type(error).__name__)
            except Exception as error:  # a thread that ends would hear of nothing any more
                log.error("news of breakers failed", error=type(error).__name__, exc_info=error)
            finally:
                self.hearing = False
            stopped.wait(_RETRY_S * (0.5 + random.random()))

    def _follow(
        self,
        redis: Redis,
        channels: list[str],
        stopped: threading.Event,
        begun: Callable[[], None],
        heard: Callable[[str, bytes], None],
    ) -> None:
        waiting = len(channels)
        with redis.pubsub() as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(*channels)
            last = asked = self._monotonic()
            while not stopped.is_set():
                message = subscription.get_message(timeout=0.5)
                now = self._monotonic()
                if message is not None:
                    last = now
                    if message["type"] == "message":
                        heard(message["channel"].decode("utf-8", "replace"), message["data"])
                    elif message["type"] == "subscribe" and (waiting := waiting - 1) == 0:
                        self.hearing = True
                        begun()
                if now - last > SILENT_S:
                    raise TimeoutError("the subscription is silent")
                if now - asked > PING_S:
                    asked = now
                    subscription.ping()
