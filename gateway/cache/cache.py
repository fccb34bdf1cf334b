"""AnswerCache: what the rest of the gateway uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from urllib.parse import urlsplit

from redis import Redis

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.errors import CallError, NotSent
from gateway.cache.engine import Engine
from gateway.cache.key import GUESS, Names, Spec, audience, base_of, base_of_part
from gateway.cache.last_good import LastGood
from gateway.cache.link import Link
from gateway.cache.loading import Load, Want
from gateway.cache.memory import MAX_BYTES, Memory, Passing
from gateway.cache.rules import PartPolicy, Verdict, most_age_s, part_verdict, verdict
from gateway.cache.store import Leases, Store
from gateway.metrics import CacheMetrics
from gateway.model import Answer, Incoming
from services.kit.auth.verifier import Identity
from services.kit.redis_client import Away, Circuit
from services.kit.stale.stored_form import Change, plain_path

# What an answer may be given for when the service fails, if it says nothing of stale-if-error. Ref: RFC 5861.
STALE_IF_ERROR_S = 300.0
# Longer targets are not looked up: names take memory, and any client can make them up.
MAX_TARGET_CHARS = 2048
SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
BYPASS = ("X-Cache", "BYPASS")
# A composition has a timeout of its own for each part.
PART_PATIENCE_S = 30.0
NOTHING: Mapping[str, str] = MappingProxyType({})


class AnswerCache:
    """Stored answers of one group of gateways. Thread-safe, and works under gevent.

    `redis` None, gone or hung costs nothing but hits: then every process keeps to itself, for a second at most.
    """

    def __init__(
        self,
        redis: Redis | None,
        *,
        domain: str,
        clock: Clock = SYSTEM_CLOCK,
        metrics: CacheMetrics | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._clock = clock
        self._circuit = Circuit(redis, "answer cache", tended=True, monotonic=clock.monotonic)
        self._memory = Memory(max_bytes)
        leases = Leases(clock.monotonic)
        probe_key = f"gateway:{domain}:c:probe"
        self._link = Link(redis, self._circuit, self._memory, leases, clock, probe_key=probe_key)
        self._store = Store(self._circuit, Names(domain), leases)
        self._count = metrics.count if metrics is not None else _no_count
        self._engine = Engine(self._store, self._memory, self._link, clock, self._count)
        self._passing = Passing(clock.monotonic)
        self._last_good = LastGood(self._store, clock)
        if metrics is not None:
            metrics.watch(lambda: self._memory.bytes, lambda: not self._circuit.closed)

    def start(self) -> None:
        """Follow the others' invalidations. In the worker process, once, before the first request."""
        self._link.start()

    def stop(self) -> None:
        """End what `start` began."""
        self._link.stop()

    @property
    def connected(self) -> bool:
        """Whether Redis is used, and changes are heard of."""
        return self._circuit.closed and 0 < self._link.since <= self._link.heard

    def clear(self) -> None:
        """Forget what is held in this process."""
        self._memory.clear()
        self._passing.clear()

    def serve(self, incoming: Incoming, load: Load) -> Answer:
        """The answer to a request: a stored one where that is allowed, else `load`'s, which is stored where that is allowed.

        Its errors pass through, unless a stored answer may stand in. An answer to a read carries X-Cache.
        """
        if not incoming.reads:
            return self._write(incoming, load)
        headers = incoming.headers
        short = len(incoming.path) + len(incoming.query) <= MAX_TARGET_CHARS
        most_s = most_age_s(headers) if short and incoming.body is None else None
        base = base_of(incoming)
        if most_s is None or self._passing.passes(base, headers, looks=incoming.method == "GET"):
            answer = load({})
            answer.headers.append(BYPASS)
            return answer

        def judge(answer: Answer) -> Verdict | None:
            proved = "authorization" in headers and incoming.identify() is not None
            return verdict(answer.status, answer.headers, subject=proved, sie_s=STALE_IF_ERROR_S)

        now = self._clock.monotonic()
        want = Want(
            incoming.method,
            base,
            headers,
            GUESS,
            now,
            incoming.deadline,
            most_s,
            incoming,
            audience=lambda: audience(incoming.identify()),
            verdict=judge,
            load=load,
            seen=partial(self._passing.learn, base, headers),
        )
        return self._engine.obtain(want)

    def part(
        self,
        service: str,
        target: str,
        policy: PartPolicy,
        load: Callable[[], Answer],
        *,
        identity: Identity | None = None,
        asked: Incoming | None = None,
    ) -> Answer:
        """One part of a composed answer, by `GET target` of `service`; only answers with status 200 are stored.

        With scope `subject` it is `identity` that it is kept for; without one it is not kept. Its body is bytes. What `load`
        raises passes through, unless a stored answer may stand in; so does an answer that is an upstream's 5xx. `asked` is the
        request that `load` sends: its time is its own, and is put off where it is sent for others.
        """
        now = self._clock.monotonic()
        base, spec = base_of_part(service, target, policy.scope), Spec((), own=policy.scope == "subject")
        want = Want(
            "GET",
            base,
            NOTHING,
            spec,
            now,
            now + PART_PATIENCE_S,
            math.inf,
            asked,
            audience=lambda: audience(identity),
            verdict=lambda given: part_verdict(
                policy, given.status, given.headers, subject=identity is not None
            ),
            load=lambda _: load(),
        )
        answer = self._engine.obtain(want)
        if not isinstance(answer.body, bytes):
            answer.body = b"".join(answer.body)
        return answer

    def last_good(self, incoming: Incoming) -> Answer | None:
        """The last good answer for a read that could not be served: what the service kept by `@stale_if_error`.

        One of scope `subject` only for the caller that `incoming.identify()` proves. With X-Cache STALE, Age, X-Stale-Age.
        """
        if not incoming.reads:
            return None
        good = self._last_good.find(incoming)
        self._count("last_good" if good is not None else "no_last_good")
        return good.answer(incoming.method) if good is not None else None

    def purge(self, service: str, path: str, *, prefix: bool = False) -> bool:
        """Forget what is stored for a path (as in a request), all its queries and variants, with `prefix` also all below it; in every
        process. Of the path itself also the last good answer for every caller, with `prefix` the last good answers of all.

        False when Redis did not note it: it will be noted, and nothing is read from Redis until then.
        """
        plain = plain_path(path)
        noted = self._change(service, [Change(plain, prefix)])
        try:
            self._last_good.forget(service, plain)
        except Away:
            return False
        return noted

    # -- for what is made of several answers

    def mark(self) -> int:
        """The place in the sequence of changes where we are."""
        return self._memory.now()

    def unchanged(self, places: Sequence[tuple[str, str]], since: int, checked: float) -> bool:
        """Whether what was asked for at `checked` (monotonic) still holds as far as it would be known here: nothing has changed
        after the mark `since` at any of these (service, plain path)."""
        return self._link.trusts(checked, self._clock.monotonic()) and self._memory.unchanged(places, since)

    # -- writes

    def _write(self, incoming: Incoming, load: Load) -> Answer:
        """What changes a path ends what is stored of it. Ref: RFC 9111, section 4.4."""
        if incoming.method in SAFE:
            return load({})
        path = plain_path(incoming.path)
        # What is below a thing goes with it.
        changes = [Change(path, prefix=incoming.method == "DELETE")]
        try:
            answer = load({})
        except NotSent:
            raise
        except CallError:
            self._change(incoming.service, changes)  # it may have run
            raise
        if answer.status < 400 or answer.status >= 500:
            for name in ("location", "content-location"):
                other = _path_here(answer.header(name))
                if other is not None and other != path:
                    changes.append(Change(other))
            self._change(incoming.service, changes)
        return answer

    def _change(self, service: str, changes: list[Change]) -> bool:
        for change in changes:
            self._memory.change(service, change)
        try:
            self._store.change(service, changes)
        except Away:
            for change in changes:
                self._link.miss(service, change)
            return False
        # What was read from Redis in between, and before it knew.
        for change in changes:
            self._memory.change(service, change)
        return True


def _no_count(_: str) -> None:
    return


def _path_here(location: str | None) -> str | None:
    """The plain path of an address on the same host, as far as that can be seen."""
    if not location or not location.startswith("/") or location.startswith("//"):
        return None
    try:
        return plain_path(urlsplit(location).path)
    except ValueError:
        return None
