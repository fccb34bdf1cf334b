"""Events over RabbitMQ: one topic exchange for all, the type as routing key, and one queue a consuming service.

One instance of a service reads its queue at a time (`x-single-active-consumer`), so that the events of one subject come in
order; when its connection ends, the broker gives the next one what it left unacknowledged.
Ref: https://www.rabbitmq.com/docs/consumers#single-active-consumer, https://www.rabbitmq.com/docs/confirms
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError

from services.kit.events.event import new_id, read
from services.kit.events.transport import Dead, Delivery
from services.kit.redis_client import Away
from services.kit.text import iso, now_us

T = TypeVar("T")

EVENTS = "breakwater.events"
DEAD = "breakwater.dead"
# A broker that says nothing for so long is gone; one that hears nothing gives the queue to the next instance.
HEARTBEAT_S = 5
# Kept up so often, by a thread of its own: a handler may take longer.
BEAT_S = 1.0
# For one step of connecting, and for a broker that takes nothing more because its memory or its disk is full.
TIMEOUT_S = 3.0
CONNECT_S = 5.0
MAX_DEAD = 10_000
FORGETS = 3
FORGET_PAUSE_S = 0.1
# A longer queue refuses what is published until its service has read: events wait in the database of their service.
MAX_LENGTH = 100_000
NOT_FOUND = 404
_PERSISTENT = 2
_FAULTS = (AMQPError, AMQPConnectorException, OSError)

# It logs each error with its traceback; they are raised as well, and the loops say once what fails.
logging.getLogger("pika").setLevel(logging.CRITICAL)


class RabbitMQ:
    """Of one instance. `receive`, `acknowledge` and `again` belong to one thread.

    Publishing and reading have a connection each: a broker that is short of memory stops the one, not the other.
    """

    def __init__(self, url: str, instance: str) -> None:
        self._parameters = _parameters(url, instance)
        self._user: str = self._parameters.credentials.username
        self._publishing = _Link(self._parameters)
        self._reading = _Link(self._parameters)
        self._inbox: deque[tuple[Any, Any, bytes]] = deque()
        self._opening = 0
        self._cancelled = False
        self._beat: threading.Thread | None = None
        self._ended = threading.Event()

    # -- the producer's side

    def publish(self, producer: str, bodies: Sequence[str]) -> None:
        """As the protocol says. Raises ValueError for a body that is no event: nothing says where it belongs."""
        routed = [(read(body).type, body.encode()) for body in bodies]
        properties = pika.BasicProperties(
            content_type="application/cloudevents+json",
            delivery_mode=_PERSISTENT,
            app_id=producer,
            # The broker takes no other than the user of the connection.
            user_id=self._user,
        )

        def send(channel: Any) -> None:
            # Each is confirmed before the next is sent: none may pass one that a full queue refuses.
            for kind, body in routed:
                try:
                    channel.basic_publish(EVENTS, kind, body, properties)
                except NackError:
                    raise Away(
                        f"a queue of {kind} is full: a service that hears it does not acknowledge"
                    ) from None

        self._keep_up()
        self._publishing.use(send, _confirming)

    def tidy(self, producer: str) -> None:
        """Nothing to do: each queue lets go of what is acknowledged."""

    # -- the consumer's

    def receive(
        self, service: str, wanted: Mapping[str, Sequence[str]], limit: int, wait_s: float
    ) -> list[Delivery]:
        def take(channel: Any) -> list[Delivery]:
            channel.connection.process_data_events(0 if self._inbox else wait_s)
            if self._cancelled:
                self._reading.drop()
                raise Away(f"{_queue_of(service)} is gone")
            count = min(limit, len(self._inbox))
            return [self._delivery(service, *self._inbox.popleft()) for _ in range(count)]

        types = [kind for kinds in wanted.values() for kind in kinds]
        self._keep_up()
        return self._reading.use(take, lambda connection: self._subscribe(connection, service, types, limit))

    def _subscribe(self, connection: Any, service: str, types: Sequence[str], limit: int) -> Any:
        channel, queue = _with_exchange(connection, EVENTS), _queue_of(service)
        arguments = {
            "x-single-active-consumer": True,
            "x-max-length": MAX_LENGTH,
            "x-overflow": "reject-publish",
        }
        channel.queue_declare(queue, durable=True, arguments=arguments)
        for kind in types:
            channel.queue_bind(queue, EVENTS, kind)
        # As many more as are being handled, so that they are here when these are done.
        channel.basic_qos(prefetch_count=2 * limit)
        self._opening += 1
        self._inbox.clear()
        self._cancelled = False
        channel.add_on_cancel_callback(self._cancel)
        channel.basic_consume(queue, lambda _, *message: self._inbox.append(message))
        return channel

    def _cancel(self, _: object) -> None:
        self._cancelled = True

    def _delivery(self, service: str, method: Any, properties: Any, body: bytes) -> Delivery:
        # With a user of its own, a service knows others by what the broker has checked; where they share one, by what they say.
        shared = properties.user_id == self._user != service
        producer = properties.app_id if shared else properties.user_id
        # Services have no right to the exchange without a name.
        replays = "" if method.exchange else str((properties.headers or {}).get("replays", ""))
        return Delivery(producer or "", f"{self._opening}-{method.delivery_tag}", body, replays)

    def acknowledge(self, service: str, deliveries: Sequence[Delivery]) -> None:
        """Also what was received before these, which is acknowledged already or has been given up by `again`."""
        if not deliveries:
            return
        opening, _, tag = deliveries[-1].handle.partition("-")

        def say(channel: Any) -> None:
            if int(opening) != self._opening:
                raise Away("the connection that delivered is lost")
            channel.basic_ack(int(tag), multiple=True)

        self._reading.use(say)

    def again(self) -> None:
        self._reading.close()

    def release(self, service: str) -> None:
        self._ended.set()
        self._reading.close(within_s=TIMEOUT_S)
        self._publishing.close(within_s=TIMEOUT_S)

    def _keep_up(self) -> None:
        if self._beat is None:
            self._beat = threading.Thread(target=self._beat_on, name="events-beat", daemon=True)
            self._beat.start()

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._reading.beat()
            self._publishing.beat()

    # -- dead letters

    def bury(self, service: str, body: bytes, reason: str) -> None:
        properties = pika.BasicProperties(
            delivery_mode=_PERSISTENT, message_id=new_id(), headers={"reason": reason, "at": iso(now_us())}
        )
        with self._open_for_dead() as channel:
            _declare_dead(channel, service)
            channel.confirm_delivery()
            channel.basic_publish(DEAD, service, body, properties)

    def dead(self, service: str, limit: int) -> list[Dead]:
        with self._open_for_dead() as channel:
            return [_dead(*message[1:]) for message in _look(channel, service, limit)]

    def replay(self, service: str, dead: Dead) -> None:
        """Only the operator may."""
        properties = pika.BasicProperties(
            delivery_mode=_PERSISTENT, user_id=self._user, headers={"replays": dead.handle}
        )
        with self._open_for_dead() as channel:
            channel.confirm_delivery()
            # Past the exchange, to this service alone.
            channel.basic_publish("", _queue_of(service), dead.body, properties, mandatory=True)

    def forget_dead(self, service: str, handles: Sequence[str]) -> None:
        left = set(handles)
        for _ in range(FORGETS):
            if left:
                with self._open_for_dead() as channel:
                    left -= _take_off(channel, service, left)
            if not left:
                return
            # Another may be looking at them: they are in their place again when it has seen them.
            self._ended.wait(FORGET_PAUSE_S)

    @contextlib.contextmanager
    def _open_for_dead(self) -> Iterator[Any]:
        """A channel of its own connection. What was looked at and not acknowledged is in its place again afterwards."""
        try:
            with pika.BlockingConnection(self._parameters) as connection:
                yield _with_exchange(connection, DEAD)
        except _FAULTS as error:
            raise _away(error) from error


class _Link:
    """One connection with one channel, on which threads take turns. What fails closes it; the next use opens it anew."""

    def __init__(self, parameters: pika.ConnectionParameters) -> None:
        self._parameters = parameters
        self._lock = threading.Lock()
        self._connection: Any = None
        self._channel: Any = None

    def use(self, action: Callable[[Any], T], prepare: Callable[[Any], Any] | None = None) -> T:
        """Run `action` on the channel, which `prepare` makes of a new connection. Raises Away: without it, where there is none."""
        with self._lock:
            try:
                if self._channel is None or not self._channel.is_open:
                    self.drop()
                    if prepare is None:
                        raise Away("the connection is lost")
                    self._connection = pika.BlockingConnection(self._parameters)
                    self._channel = prepare(self._connection)
                return action(self._channel)
            except Away:
                raise
            except BaseException as error:
                self.drop()
                if isinstance(error, _FAULTS):
                    raise _away(error) from error
                raise

    def beat(self) -> None:
        """Send and take what is due, heartbeats first. Not where the link is in use, which does the same."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._connection is not None:
                self._connection.process_data_events(0)
        except Exception:
            self.drop()  # the next use opens it anew, or says why not
        finally:
            self._lock.release()

    def close(self, within_s: float = -1) -> None:
        """End the connection, unless another thread uses it for longer (without `within_s`: however long)."""
        if self._lock.acquire(timeout=within_s):
            try:
                self.drop()
            finally:
                self._lock.release()

    def drop(self) -> None:
        """As `close`, for those that use it."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None and connection.is_open:
            with contextlib.suppress(Exception):
                connection.close()


def _parameters(url: str, instance: str) -> Any:
    parameters = pika.URLParameters(url)
    parameters.heartbeat = HEARTBEAT_S
    parameters.blocked_connection_timeout = TIMEOUT_S
    parameters.socket_timeout = TIMEOUT_S
    parameters.stack_timeout = CONNECT_S
    parameters.connection_attempts = 1
    parameters.client_properties = {"connection_name": instance}
    return parameters


def _confirming(connection: Any) -> Any:
    channel = _with_exchange(connection, EVENTS)
    channel.confirm_delivery()
    return channel


def _with_exchange(connection: Any, exchange: str) -> Any:
    """A channel. Where the exchange is there already, which is looked at first, a service needs no right to make it."""
    channel = connection.channel()
    try:
        channel.exchange_declare(exchange, passive=True)
    except ChannelClosedByBroker as error:
        if error.reply_code != NOT_FOUND:
            raise
        channel = connection.channel()
        channel.exchange_declare(exchange, "topic", durable=True)
    return channel


def _declare_dead(channel: Any, service: str) -> None:
    queue = _dead_of(service)
    channel.queue_declare(queue, durable=True, arguments={"x-max-length": MAX_DEAD})
    channel.queue_bind(queue, DEAD, service)


def _look(channel: Any, service: str, limit: int) -> Iterator[tuple[Any, Any, bytes]]:
    """The oldest dead letters, each taken off the queue until it is acknowledged or the channel ends."""
    for _ in range(limit):
        try:
            method, properties, body = channel.basic_get(_dead_of(service))
        except ChannelClosedByBroker as error:
            if error.reply_code == NOT_FOUND:
                return  # nothing has been buried yet
            raise
        if method is None:
            return
        yield method, properties, body


def _take_off(channel: Any, service: str, wanted: set[str]) -> set[str]:
    """Let go of those dead letters. Returns the handles of those that were there."""
    found: set[str] = set()
    for method, properties, _ in _look(channel, service, MAX_DEAD):
        if properties.message_id in wanted:
            channel.basic_ack(method.delivery_tag)
            found.add(properties.message_id)
        if found == wanted:
            break
    return found


def _dead(properties: Any, body: bytes) -> Dead:
    headers = properties.headers or {}
    return Dead(properties.message_id or "", str(headers.get("at", "")), str(headers.get("reason", "")), body)


def _queue_of(service: str) -> str:
    return f"{service}.events"


def _dead_of(service: str) -> str:
    return f"{service}.dead"


def _away(error: Exception) -> Away:
    return Away(f"{type(error).__name__}: {error}")
