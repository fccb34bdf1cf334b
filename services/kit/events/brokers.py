"""Which broker carries a service's events: by the scheme of `EVENTS_URL`, and by default the Redis for state."""

from __future__ import annotations

from services.kit.events.redis_streams import RedisStreams
from services.kit.events.transport import Transport
from services.kit.redis_client import connect
from services.kit.settings import ServiceSettings, secret

# Longer than a read waits for something new.
TIMEOUT_S = 3.0


def broker_of(settings: ServiceSettings, instance: str) -> Transport | None:
    """None without any. Nothing is opened before the first use."""
    url = secret(settings.events_url) or settings.redis_state_url
    if url and url.startswith("amqp"):
        # Not for every service: pika takes its memory and its time to load.
        from services.kit.events.rabbitmq import RabbitMQ

        return RabbitMQ(url, instance)
    redis = connect(
        url,
        secret(settings.redis_password),
        username=settings.redis_username,
        timeout_s=TIMEOUT_S,
        connections=settings.worker_threads * 2,
    )
    return RedisStreams(redis, instance) if redis is not None else None
