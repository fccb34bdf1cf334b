"""Instances of a gateway's cache in front of a service that a test scripts, all on one real Redis."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from redis import Redis

from discovery.clock import SystemClock
from gateway.cache import AnswerCache
from gateway.model import Answer, Incoming
from services.kit.redis_client import connect
from tests.support.eventually import eventually
from tests.support.incoming import incoming as any_incoming
from tests.support.incoming import person

ANN, BOB, ADMIN = person("ann"), person("bob"), person("root", "admin")
PUBLIC = {"Cache-Control": "public, max-age=60", "ETag": '"1"', "Content-Type": "text/plain"}
PATH = "/api/pears/1"


@dataclass
class Origin:
    """The service: `answer` makes what it answers; `calls` are the headers with which it was asked."""

    headers: dict[str, str] = field(default_factory=lambda: dict(PUBLIC))
    body: bytes = b"one"
    status: int = 200
    takes_s: float = 0.0
    error: Exception | None = None
    calls: list[dict[str, str]] = field(default_factory=list)

    def load(self, asked: Incoming) -> Callable[[Mapping[str, str]], Answer]:
        def load(extra: Mapping[str, str]) -> Answer:
            self.calls.append({**asked.headers, **extra})
            body, headers, status = self.body, list(self.headers.items()), self.status
            if self.takes_s:
                time.sleep(self.takes_s)
            if self.error is not None:
                raise self.error
            if extra.get("if-none-match") and extra["if-none-match"] == self.headers.get("ETag"):
                return Answer(304, headers, b"", source="pears-1", attempts=1)
            headers.append(("Content-Length", str(len(body))))
            return Answer(status, headers, body, source="pears-1", attempts=1)

        return load


class Leap(SystemClock):
    """The system's clock, which a test can put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        # Hypothesis looks after the one of the module.
        self._own = random.Random(1)

    def random(self) -> float:
        return self._own.random()

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s

    def time(self) -> float:
        return super().time() + self.ahead_s


CLOCK = Leap()
incoming = partial(any_incoming, clock=CLOCK)


class Instance:
    """One process's cache, as far as the others can tell."""

    def __init__(
        self, url: str | None, origin: Origin, *, follow: bool = True, timeout_s: float = 1.0, **options: Any
    ) -> None:
        redis = connect(url, None, timeout_s=timeout_s, connections=32)
        self.cache = AnswerCache(redis, domain="business", clock=CLOCK, **options)
        self.origin = origin
        if follow:
            self.cache.start()
            if redis is not None:
                eventually(lambda: self.cache.connected, 5, 0.005)

    def get(self, path: str = PATH, query: str = "", **options: Any) -> Answer:
        asked = incoming(path, query, **options)
        return self.cache.serve(asked, self.origin.load(asked))

    def state(self, path: str = PATH, query: str = "", **options: Any) -> str | None:
        return self.get(path, query, **options).header("x-cache")

    def forget_here(self) -> None:
        """Empty the in-process layer, as a new process has it."""
        self.cache.clear()

    def begin(self, origin: Origin) -> None:
        """As new, in front of another service."""
        self.origin = origin
        eventually(lambda: self.cache.connected, 10, 0.005)
        self.cache.clear()

    def stop(self) -> None:
        self.cache.stop()


def later(seconds: float) -> None:
    """Time goes by for every instance."""
    CLOCK.ahead_s += seconds


def at_once(number: int, work: Callable[[int], Any]) -> list[Any]:
    """`number` threads that begin together; what each returned or raised."""
    results: list[Any] = [None] * number
    gate = threading.Barrier(number)

    def run(place: int) -> None:
        gate.wait(10)
        try:
            results[place] = work(place)
        except BaseException as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def keys(redis: Redis, pattern: str) -> list[bytes]:
    return sorted(redis.keys(pattern))  # type: ignore[arg-type,type-var]
