"""Events as services publish them, put into their streams, and taken out of them."""

from __future__ import annotations

from typing import Any

from redis import Redis

from discovery.clock import SYSTEM_CLOCK
from services.kit.events.event import Envelope, Event, read, wrap
from services.kit.events.redis_streams import stream_of
from tests.support.servers import RedisServer


def deliver(server: RedisServer, *events: Event) -> None:
    """As the relay of the service that publishes them does, each under an id of its own."""
    with Redis.from_url(server.url) as redis:
        for event in events:
            body = wrap(event, int(SYSTEM_CLOCK.time() * 1e6)).to_json()
            redis.xadd(stream_of(event.PRODUCER), {"e": body})


def told(server: RedisServer, producer: str) -> list[Envelope]:
    """What a service has published, in its order."""
    with Redis.from_url(server.url) as redis:
        entries: Any = redis.xrange(stream_of(producer))
    return [read(fields[b"e"]) for _, fields in entries]
