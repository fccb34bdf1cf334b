"""Events over Redis Streams: one stream a producer, `events:<producer>`, and one group a consuming service.

One instance of a service follows a stream at a time, by a lease: so the events of one subject come in order. It reads under the
one name `reader`, so that the next holder of the lease finds what the one before it left unacknowledged.
Ref: https://redis.io/docs/latest/develop/data-types/streams/
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from services.kit.events.transport import Dead, Delivery
from services.kit.redis_client import Away

log = structlog.get_logger(__name__)

T = TypeVar("T")

LEASE_S = 5.0
# The lease is kept up so often, by a thread of its own: a handler may take longer than it lasts.
BEAT_S = 1.0
READER = "reader"
MAX_DEAD = 10_000
# Followed like a producer, whose name it cannot be: what comes back to the service from its dead letters.
REPLAYED = ""
# A longer stream takes nothing more until services have acknowledged: events wait in the database of their service, not in the
# memory that all share. Of one that no service reads, half as much is kept.
MAX_LENGTH = 100_000
# 2: it was another's, or nobody's, before.
_TAKE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 2 or 0
"""
_KEEP_UP = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end"
_GIVE_BACK = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class RedisStreams:
    """Of one instance. `receive`, `acknowledge` and `again` belong to one thread."""

    def __init__(self, redis: Redis, instance: str) -> None:
        self._redis = redis
        self._instance = instance
        self._take = redis.register_script(_TAKE)
        self._keep = redis.register_script(_KEEP_UP)
        self._give_back = redis.register_script(_GIVE_BACK)
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}  # producer → the lease's key
        # Producer → after which entry to read what was left unacknowledged; none: only what is new.
        self._left: dict[str, str] = {}
        self._grouped: set[str] = set()
        self._beat: threading.Thread | None = None
        self._ended = threading.Event()

    # -- the producer's side

    def publish(self, producer: str, bodies: Sequence[str]) -> None:
        def add(redis: Redis) -> None:
            if redis.xlen(stream_of(producer)) >= MAX_LENGTH:
                self.tidy(producer)
                if redis.xlen(stream_of(producer)) >= MAX_LENGTH:
                    raise Away(f"{stream_of(producer)} is full: a service that reads it does not acknowledge")
            with redis.pipeline(transaction=False) as pipe:
                for body in bodies:
                    pipe.xadd(stream_of(producer), {"e": body})
                pipe.execute()

        self._do(add)

    def tidy(self, producer: str) -> None:
        def trim(redis: Redis) -> None:
            stream = stream_of(producer)
            if not redis.exists(stream):
                return
            needed = [_first_needed(redis, stream, group) for group in redis.xinfo_groups(stream)]
            if needed:
                redis.xtrim(stream, minid=min(needed, key=_order), approximate=True)
            else:
                redis.xtrim(stream, maxlen=MAX_LENGTH // 2, approximate=True)

        self._do(trim)

    # -- the consumer's

    def receive(
        self, service: str, wanted: Mapping[str, Sequence[str]], limit: int, wait_s: float
    ) -> list[Delivery]:
        return self._do(lambda redis: self._receive(redis, service, list(wanted), limit, wait_s))

    def _receive(
        self, redis: Redis, service: str, producers: Sequence[str], limit: int, wait_s: float
    ) -> list[Delivery]:
        producers = [*producers, REPLAYED]
        self._follow(redis, service, producers)
        held = [producer for producer in producers if producer in self._held]
        if not held:
            self._ended.wait(wait_s)
            return []
        behind = [producer for producer in held if producer in self._left]
        if behind:
            found = self._read(redis, service, {p: self._left[p] for p in behind}, limit, None)
            gone = [(producer, id_) for producer, id_, fields in found if not fields]
            for producer, id_ in gone:
                source = _source(service, producer)
                log.error("event was trimmed before it was acknowledged", stream=source, entry=id_)
                redis.xack(source, service, id_)
            for producer in behind:
                ids = [id_ for each, id_, _ in found if each == producer]
                if ids:
                    self._left[producer] = ids[-1]
                else:
                    del self._left[producer]
        else:
            found = self._read(redis, service, dict.fromkeys(held, ">"), limit, wait_s)
        return [_delivery(producer, id_, fields) for producer, id_, fields in found if fields]

    def _follow(self, redis: Redis, service: str, producers: Sequence[str]) -> None:
        for producer in producers:
            key = f"{service}:events:{producer}"
            taken = self._take([key], [self._instance, int(LEASE_S * 1000)], client=redis)
            with self._lock:
                if not taken:
                    self._held.pop(producer, None)
                    continue
                new = taken == 2 or producer not in self._held
                self._held[producer] = key
            if new:
                self._left[producer] = "0"
        if self._beat is None and self._held:
            self._beat = threading.Thread(target=self._keep_up, name="events-beat", daemon=True)
            self._beat.start()

    def _read(
        self, redis: Redis, service: str, after: dict[str, str], limit: int, wait_s: float | None
    ) -> list[tuple[str, str, dict[bytes, bytes]]]:
        sources = {_source(service, producer): producer for producer in after}
        streams: Any = {source: after[producer] for source, producer in sources.items()}
        for producer in after.keys() - self._grouped:
            self._make_group(redis, service, producer)
        block = None if wait_s is None else max(1, int(wait_s * 1000))
        try:
            found: Any = redis.xreadgroup(service, READER, streams, count=limit, block=block)
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            self._grouped.clear()  # Redis has lost its data: the group is made anew, from the first entry on
            return []
        return [
            (sources[name.decode()], id_.decode(), fields or {})
            for name, entries in found or ()
            for id_, fields in entries
        ]

    def _make_group(self, redis: Redis, service: str, producer: str) -> None:
        try:
            redis.xgroup_create(_source(service, producer), service, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._grouped.add(producer)

    def acknowledge(self, service: str, deliveries: Sequence[Delivery]) -> None:
        def say(redis: Redis) -> None:
            with redis.pipeline(transaction=False) as pipe:
                for producer in {each.producer for each in deliveries}:
                    handles = [each.handle for each in deliveries if each.producer == producer]
                    pipe.xack(_source(service, producer), service, *handles)
                    if producer == REPLAYED:
                        pipe.xdel(_source(service, producer), *handles)
                pipe.execute()

        if deliveries:
            self._do(say)

    def again(self) -> None:
        self._left = dict.fromkeys(self._held, "0")

    def release(self, service: str) -> None:
        self._ended.set()
        with self._lock:
            held, self._held = self._held, {}
        for key in held.values():
            try:
                self._give_back([key], [self._instance])
            except (RedisError, OSError):
                return  # it runs out by itself

    def _keep_up(self) -> None:
        while not self._ended.wait(BEAT_S):
            with self._lock:
                held = list(self._held.values())
            for key in held:
                try:
                    self._keep([key], [self._instance, int(LEASE_S * 1000)])
                except (RedisError, OSError):
                    break  # the consumer will find that out by itself

    # -- dead letters

    def bury(self, service: str, body: bytes, reason: str) -> None:
        fields: Any = {"e": body, "reason": reason}
        self._do(lambda redis: redis.xadd(_dead_of(service), fields, maxlen=MAX_DEAD, approximate=True))

    def dead(self, service: str, limit: int) -> list[Dead]:
        found: Any = self._do(lambda redis: redis.xrange(_dead_of(service), count=limit))
        return [
            Dead(
                id_.decode(),
                _when(id_),
                fields.get(b"reason", b"").decode("utf-8", "replace"),
                fields.get(b"e", b""),
            )
            for id_, fields in found
        ]

    def replay(self, service: str, dead: Dead) -> None:
        fields: Any = {"e": dead.body, "replays": dead.handle}
        # What is trimmed off is dead still.
        self._do(lambda redis: redis.xadd(_source(service, REPLAYED), fields, maxlen=MAX_DEAD))

    def forget_dead(self, service: str, handles: Sequence[str]) -> None:
        if handles:
            self._do(lambda redis: redis.xdel(_dead_of(service), *handles))

    def _do(self, action: Callable[[Redis], T]) -> T:
        try:
            return action(self._redis)
        except (RedisError, OSError) as error:
            self._grouped.clear()
            raise Away(f"{type(error).__name__}: {error}") from error


def stream_of(producer: str) -> str:
    """The stream of a service's events."""
    return f"events:{producer}"


def _source(service: str, producer: str) -> str:
    return f"{_dead_of(service)}:replayed" if producer == REPLAYED else stream_of(producer)


def _delivery(producer: str, id_: str, fields: dict[bytes, bytes]) -> Delivery:
    # A producer may write whatever fields into its own stream.
    replays = fields.get(b"replays", b"").decode() if producer == REPLAYED else ""
    return Delivery(producer, id_, fields.get(b"e", b""), replays)


def _dead_of(service: str) -> str:
    return f"{service}:events:dead"


def _first_needed(redis: Redis, stream: str, group: Any) -> str:
    """The oldest entry that the group has not acknowledged; where it has all, one more than the last it has read."""
    pending: Any = redis.xpending(stream, group["name"])
    if pending["pending"]:
        return str(pending["min"].decode())
    millis, number = _order(group["last-delivered-id"].decode())
    return f"{millis}-{number + 1}"


def _order(id_: str) -> tuple[int, int]:
    millis, _, number = id_.partition("-")
    return int(millis), int(number or 0)


def _when(id_: bytes) -> str:
    return datetime.fromtimestamp(int(id_.partition(b"-")[0]) / 1000, UTC).isoformat()
