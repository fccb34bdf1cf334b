"""AnswerCache: what the rest of the gateway asks. It decides nothing by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from redis import Redis

from discovery.clock import SYSTEM_CLOCK, Clock
from gateway.cache.policy import Part, PartPolicy
from gateway.model import Answer, Incoming
from services.kit.auth import Identity

# What is asked of the upstream: the request with these headers in place of its own; one with an empty value is left out.
Load = Callable[[Mapping[str, str]], Answer]


class AnswerCache:
    """Stored answers of one group of gateways. Thread-safe, and works under gevent.

    `redis` None, gone or hung costs nothing but hits: then every process keeps to itself, for a second at most.
    """

    def __init__(self, redis: Redis | None, *, domain: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._redis = redis
        self._domain = domain
        self._clock = clock

    def start(self) -> None:
        """Follow the others' invalidations. In the worker process, once, before the first request."""

    def stop(self) -> None:
        """End what `start` began."""

    def serve(self, incoming: Incoming, load: Load) -> Answer:
        """The answer to a request: a stored one where that is allowed, else `load`'s, which is stored where that is allowed.

        Its errors pass through, unless a stored answer may stand in. An answer to a read carries X-Cache. Requests for
        PURGE are answered here.
        """
        return load({})

    def part(
        self,
        service: str,
        target: str,
        policy: PartPolicy,
        load: Callable[[], Answer],
        *,
        identity: Identity | None = None,
    ) -> Part:
        """One part of a composed answer, by `GET target` of `service`; only answers with status 200 are stored.

        With scope `subject` it is `identity` that it is kept for; without one it is not kept. Bodies come as bytes. What `load`
        raises passes through, unless a stored answer may stand in; so does an answer that is an upstream's 5xx.
        """
        return Part(load(), "MISS")

    def last_good(self, incoming: Incoming) -> Answer | None:
        """The last good answer for a read that could not be served: the service's own snapshot, or a stored answer.

        One of scope `subject` only for the caller whom `incoming.identify()` proves. With X-Cache STALE, Age, X-Stale-Age.
        """
        return None

    def purge(self, service: str, path: str, *, prefix: bool = False) -> None:
        """Forget what is stored for a path (all its queries and variants), or with `prefix` also all below it, everywhere."""
