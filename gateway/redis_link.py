"""The way to Redis for what gateways share of breakers and limits: commands behind one circuit, and a subscription."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import RedisError

from discovery.clock import SYSTEM_CLOCK, Clock
from services.kit.redis_client import Away, Circuit

__all__ = ["TIMEOUT_S", "Away", "RedisLink", "listen"]

log = structlog.get_logger(__name__)

# For each step of a client that a link is given: no call waits for it, and a busy process must not take itself for a dead Redis.
TIMEOUT_S = 0.5
FAILURES = 3
# A subscription says nothing while nothing happens: it is pinged, and taken for dead when it answers no more.
BEAT_S = 0.5
SILENT_S = 3.0


class RedisLink:
    """Thread-safe. A client of its own, for a subscription keeps one connection for good; without any, Redis is always away."""

    def __init__(self, redis: Redis | None) -> None:
        self._redis = redis
        self._circuit = Circuit(redis, "breakers and limits", failures=FAILURES)
        self._refusal = ""
        self.hearing = False

    @property
    def exists(self) -> bool:
        return self._redis is not None

    def send(self, fill: Callable[[Any], object]) -> list[Any]:
        """Send what `fill` puts into a pipeline; returns what Redis says to each command, errors among them. Raises Away."""

        def execute(redis: Redis) -> list[Any]:
            with redis.pipeline(transaction=False) as pipe:
                fill(pipe)
                return pipe.execute(raise_on_error=False)

        return self._circuit.run(execute)

    def read(self, keys: Sequence[str], most: int) -> list[bytes | None]:
        """The values of keys, None for one that is not there; of a long one, one byte more than `most`. Raises Away."""
        found = self.send(lambda pipe: [pipe.getrange(key, 0, most) for key in keys]) if keys else []
        return [value if isinstance(value, bytes) and value else None for value in found]

    def write(self, fill: Callable[[Any], object]) -> None:
        """As `send`, of what may be refused: a full or read-only Redis does not store, and still passes on what is published."""
        refusal = next((str(each) for each in self.send(fill) if isinstance(each, Exception)), "")
        if refusal and refusal != self._refusal:
            log.warning("redis takes no news of breakers", reason=refusal[:200])
        self._refusal = refusal

    def follow(
        self,
        *channels: str,
        until: Callable[[], bool],
        begun: Callable[[], None],
        heard: Callable[[str, bytes], None],
    ) -> None:
        """Pass on what is published on the channels, `until` that is true or Redis is lost: to be called again then.

        `begun` is called once it listens: something may have been missed before.
        """
        assert self._redis is not None
        try:
            with self._redis.pubsub() as subscription:  # type: ignore[no-untyped-call]
                subscription.subscribe(*channels)
                for message, _ in listen(subscription, SYSTEM_CLOCK, beat_s=BEAT_S, silent_s=SILENT_S):
                    if until():
                        return
                    if message is None:
                        continue
                    if message["type"] == "message":
                        heard(message["channel"].decode("utf-8", "replace"), message["data"])
                    elif message["type"] == "subscribe" and message["data"] == len(channels):
                        self.hearing = True
                        begun()
        except (RedisError, OSError) as error:
            if self.hearing:
                log.warning("news of breakers lost", error=type(error).__name__)
        finally:
            self.hearing = False


def listen(
    subscription: Any, clock: Clock, *, beat_s: float, silent_s: float
) -> Iterator[tuple[dict[str, Any] | None, float]]:
    """Each message of a subscription as it comes, and None at every beat at least; with it, until when (monotonic) all that was
    published has come, 0 for not known.

    Raises TimeoutError when the answer to a beat takes longer than `silent_s`, RedisError.
    """
    heard, sent, answered = 0.0, clock.monotonic(), True
    while True:
        due = sent + (beat_s if answered else silent_s)
        message = subscription.get_message(timeout=max(0.001, due - clock.monotonic()))
        # What is done with the message takes time, in which the answer to a beat may come: that is not counted.
        now = clock.monotonic()
        if message is not None and message["type"] == "pong":
            heard, answered, message = sent, True, None
        yield message, heard
        if answered and now - sent >= beat_s:
            sent, answered = now, False
            subscription.ping()
        elif now - sent >= silent_s:
            raise TimeoutError("no answer to a heartbeat")
