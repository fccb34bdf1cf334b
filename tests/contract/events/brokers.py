"""Both brokers as tests see them: real servers, and ways around our own code to put events in and to fill them up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import pika
from redis import Redis

from services.kit.events.rabbitmq import EVENTS
from services.kit.events.redis_streams import stream_of
from services.kit.events.transport import Transport
from stack.servers import rabbitmq
from tests.contract.events.rig import PostPublished, connect
from tests.support.rabbit import RabbitServer
from tests.support.servers import RedisServer

WANTED = {"posts": [PostPublished.TYPE], "users": ["user.deleted.v1"]}
SERVICES = ("posts", "stats", "users")


class Broker(Protocol):
    """`url` is a service's EVENTS_URL; `transport` one instance of it."""

    name: str

    def url(self, service: str) -> str: ...

    def clear(self) -> None:
        """Forget all events, and who hears them."""

    def put(self, by: str, *bodies: bytes) -> None:
        """Send these as the service `by`, whatever they are."""

    def room(self) -> None:
        """Undo `fill`."""

    def fill(self) -> None:
        """Let it have no room for more: Redis no memory, RabbitMQ no disk."""

    def kill(self) -> None: ...

    def start(self) -> None: ...


def transport(broker: Broker, service: str, number: int = 1) -> Transport:
    return connect(broker.url(service), f"{service}-{number}")


def introduce(broker: Broker) -> None:
    """Let the broker know that stats hears posts and users: what is published from now on comes, whoever runs."""
    early = transport(broker, "stats", 0)
    early.receive("stats", WANTED, 1, 0.01)
    early.release("stats")


class RedisBroker:
    name = "redis"

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.kill = server.kill
        self.start = server.start

    def url(self, service: str) -> str:
        return self.server.url

    def client(self) -> Redis:
        return Redis.from_url(self.server.url)

    def clear(self) -> None:
        with self.client() as redis:
            redis.flushall()

    def put(self, by: str, *bodies: bytes) -> None:
        with self.client() as redis:
            for body in bodies:
                fields: Any = {"e": body} if body else {"x": "y"}
                redis.xadd(stream_of(by), fields)

    def fill(self) -> None:
        with self.client() as redis:
            redis.config_set("maxmemory", "1")

    def room(self) -> None:
        with self.client() as redis:
            redis.config_set("maxmemory", "0")


class RabbitBroker:
    name = "rabbitmq"

    def __init__(self, server: RabbitServer) -> None:
        self.server = server
        self.kill = server.kill
        self.start = server.start

    def url(self, service: str) -> str:
        return self.server.url(service)

    @contextlib.contextmanager
    def channel(self, user: str = rabbitmq.OPERATOR) -> Iterator[Any]:
        with pika.BlockingConnection(pika.URLParameters(self.server.url(user))) as connection:
            yield connection.channel()

    def clear(self) -> None:
        with self.channel() as channel:
            for service in SERVICES:
                for kind in ("events", "dead"):
                    channel.queue_delete(f"{service}.{kind}")

    def put(self, by: str, *bodies: bytes) -> None:
        with self.channel(by) as channel:
            channel.confirm_delivery()
            properties = pika.BasicProperties(user_id=by, app_id=by)
            for body in bodies:
                channel.basic_publish(EVENTS, PostPublished.TYPE, body, properties)

    def waiting(self, queue: str) -> int:
        """How many messages no instance has yet."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)

    def fill(self) -> None:
        self.server.node.control("set_disk_free_limit", str(10**15))

    def room(self) -> None:
        self.server.node.control("set_disk_free_limit", "50MB")
