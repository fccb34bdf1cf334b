"""A JSON cache in Redis that never makes a request fail, and never keeps what has been invalidated.

Reading through it takes a *lease*: on a miss one caller gets a token and loads, the others wait for its value. The
value is stored only while the token stands; `invalidate` takes both away, so that a value read before a change cannot
be stored after it. Ref: Nishtala et al., Scaling Memcache at Facebook (NSDI 2013), section 3.2.1.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
from prometheus_client import Counter
from pydantic_core import from_json, to_json
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

log = structlog.get_logger(__name__)

LEASE_S = 3.0
# How long a load is waited for by others before they load by themselves, and how often they look. What takes longer is behind a
# lock, or asks a database that is away: waited for to its end, it would hold every thread that is asked for the same.
WAIT_S = 0.25
POLL_S = 0.01
# Answers that are errors, which cost no time. A Redis that says nothing opens the breaker at once: each try takes a timeout.
FAILURES_TO_OPEN = 3
TRIAL_EVERY_S = 0.25
MAX_PENDING = 10_000

# One round trip: the value, or nothing and whether this caller has got the lease. Never without a write, which a Redis that
# has become read-only refuses: what nobody can invalidate there must not be believed.
_READ = """
local value = redis.call('GET', KEYS[1])
if value then redis.call('DEL', KEYS[2]) return {value, 0} end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return {false, 1} end
return {false, 0}
"""
_STORE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class _Away(Exception):
    """Redis is not to be had now."""


class _Load:
    """A load in this process that other threads wait for, until `WAIT_S` after it `began`."""

    __slots__ = ("began", "done", "ok", "value")

    def __init__(self, began: float) -> None:
        self.began = began
        self.done = threading.Event()
        self.ok = False
        self.value: Any = None


class Cache:
    """JSON values by key, in the namespace of one service. Safe for threads. Every method works without Redis:
    then it loads, and stores nothing. Times in seconds; a call to a Redis that has gone costs at most `timeout_s`
    of the client, and nothing while the breaker is open: a thread of its own tries whether Redis is back."""

    def __init__(
        self,
        redis: Redis | None,
        namespace: str,
        *,
        operations: Counter | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._redis = redis
        self._namespace = namespace
        self._operations = operations
        self._monotonic = monotonic
        self._sleep = sleep
        self._lock = threading.Lock()
        self._failures = 0
        self._away = False
        self._loads: dict[str, _Load] = {}
        self._pending: dict[str, object] = {}

    def get(self, key: str) -> Any | None:
        """The value, or None: not there, or Redis is away."""
        try:
            data = self._run("get", lambda r: r.get(self._value_key(key)))
        except _Away:
            return None
        self._count("hit" if data is not None else "miss")
        return from_json(data) if data is not None else None

    def set(self, key: str, value: Any, ttl_s: float) -> None:
        """Store a value regardless of leases. For values that nobody invalidates; others go through `get_or_load`."""
        data = to_json(value)
        try:
            self._run("set", lambda r: r.set(self._value_key(key), data, px=_ms(ttl_s)))
        except _Away:
            return

    def invalidate(self, *keys: str) -> None:
        """Forget the keys; call it *after* the commit that changed them. What Redis misses is made up for later."""
        if not keys or self._redis is None:
            return
        with self._lock:
            for key in keys:
                # Whoever comes from now on must not join a load that began before the change.
                self._loads.pop(key, None)
        try:
            self._run("invalidate", lambda r: self._delete(r, keys))
        except _Away:
            with self._lock:
                self._pending.update({key: object() for key in keys})
                while len(self._pending) > MAX_PENDING:
                    self._pending.pop(next(iter(self._pending)))

    def get_or_load(self, key: str, ttl_s: float, load: Callable[[], Any]) -> Any:
        """The value, from the cache or from `load` (its errors pass through). Callers that ask at once load once, unless
        that takes longer than `WAIT_S`.

        `load` returns what JSON can hold; None is answered and not stored. What comes back is never older than an
        `invalidate` that was over before the call, whichever instance made it: a value is shared with those who asked
        before it was stored, and only if it could be stored.
        """
        token = secrets.token_hex(8)
        began = self._monotonic()
        try:
            data, owner = self._read(key, token)
            while data is None and not owner:
                with self._lock:
                    flight = self._loads.get(key)
                left_s = (flight.began if flight else began) + WAIT_S - self._monotonic()
                if left_s <= 0:
                    break
                if flight is None:
                    self._sleep(POLL_S)
                elif flight.done.wait(left_s) and flight.ok:
                    self._count("shared")
                    return flight.value
                data, owner = self._read(key, token)
        except _Away:
            return load()
        if data is not None:
            self._count("hit")
            return from_json(data)
        self._count("miss")
        if owner:
            return self._load_and_store(key, token, ttl_s, load)
        return self._load_without_lease(key, load, began)

    def _load_and_store(self, key: str, token: str, ttl_s: float, load: Callable[[], Any]) -> Any:
        flight = _Load(self._monotonic())
        with self._lock:
            self._loads[key] = flight
        loaded = False
        try:
            flight.value = load()
            loaded = True
            return flight.value
        finally:
            # Nobody joins from here on: who asks after the store may ask after a change that followed it.
            self._landed(key, flight)
            flight.ok = self._store(key, token, ttl_s, flight.value) and loaded
            flight.done.set()

    def _load_without_lease(self, key: str, load: Callable[[], Any], began: float) -> Any:
        """For one who `began` to wait, in vain. Its value is nobody else's, but who comes meanwhile need not wait as well."""
        flight = _Load(began)
        with self._lock:
            self._loads.setdefault(key, flight)
        try:
            return load()
        finally:
            self._landed(key, flight)
            flight.done.set()

    def _landed(self, key: str, flight: _Load) -> None:
        with self._lock:
            if self._loads.get(key) is flight:
                del self._loads[key]

    def _store(self, key: str, token: str, ttl_s: float, value: Any) -> bool:
        """Store a value, or give the lease back where there is none. False when the lease has been taken away."""
        keys = (self._value_key(key), self._lease_key(key))
        try:
            if value is None:
                return bool(self._run("release", lambda r: r.eval(_RELEASE, 1, keys[1], token)))
            data = to_json(value)
            stored = bool(self._run("store", lambda r: r.eval(_STORE, 2, *keys, token, data, _ms(ttl_s))))
            self._count("stored" if stored else "refused")
            return stored
        except _Away:
            return False

    def _read(self, key: str, token: str) -> tuple[bytes | None, bool]:
        keys = (self._value_key(key), self._lease_key(key))
        data, owner = self._run("read", lambda r: r.eval(_READ, 2, *keys, token, _ms(LEASE_S)))
        return data, bool(owner)

    def _delete(self, redis: Redis, keys: tuple[str, ...]) -> None:
        redis.delete(*(name for key in keys for name in (self._value_key(key), self._lease_key(key))))

    def _run(self, operation: str, action: Callable[[Redis], Any]) -> Any:
        """Run one Redis operation behind the breaker. Raises _Away."""
        redis = self._redis
        if redis is None or self._away:
            raise _Away
        try:
            self._catch_up(redis)
            result = action(redis)
        except (RedisError, OSError) as error:
            self._failed(operation, error)
            raise _Away from error
        self._failures = 0
        return result

    def _catch_up(self, redis: Redis) -> None:
        """Delete what Redis missed."""
        if not self._pending:
            return
        with self._lock:
            pending = dict(self._pending)
        self._delete(redis, tuple(pending))
        with self._lock:
            for key, mark in pending.items():
                # Not one that has failed again in the meantime.
                if self._pending.get(key) is mark:
                    del self._pending[key]

    def _failed(self, operation: str, error: Exception) -> None:
        self._count("error")
        if isinstance(error, OutOfMemoryError):
            return  # it still reads and deletes, and must be told of every change
        with self._lock:
            self._failures += 1
            silent = isinstance(error, RedisConnectionError | RedisTimeoutError | OSError)
            opened = not self._away and (silent or self._failures >= FAILURES_TO_OPEN)
            self._away |= opened
        if opened:
            log.warning("cache away", operation=operation, error=type(error).__name__)
            threading.Thread(target=self._wait_for_redis, name="cache-trial", daemon=True).start()

    def _wait_for_redis(self) -> None:
        """Until it takes writes again: a replica answers reads only, and could not be invalidated.

        One good trial is not enough: other processes may have yet to tell, at their next one, what Redis missed.
        """
        redis = self._redis
        assert redis is not None
        good = 0
        while good < 2:
            self._sleep(TRIAL_EVERY_S)
            try:
                self._catch_up(redis)
                redis.set(f"{self._namespace}:trial", 1, px=_ms(1.0))
                good += 1
            except OutOfMemoryError:
                good += 1
            except (RedisError, OSError):
                good = 0
        self._failures = 0
        self._away = False
        log.info("cache back")

    def _count(self, outcome: str) -> None:
        if self._operations is not None:
            self._operations.labels(outcome).inc()

    def _value_key(self, key: str) -> str:
        # The braces keep a key's value and lease on one node of a Redis cluster.
        return f"{self._namespace}:{{{key}}}:v"

    def _lease_key(self, key: str) -> str:
        return f"{self._namespace}:{{{key}}}:l"


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
