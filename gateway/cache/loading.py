"""Asking the service for an answer, and storing it where that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from discovery.calls.guard import FAILED_STATUSES
from discovery.clock import Clock
from discovery.errors import CallError
from gateway.cache.coalesce import Flight
from gateway.cache.entry import Entry, pack
from gateway.cache.giving import Beside, give, passed_on, read_whole
from gateway.cache.key import Spec, Variant
from gateway.cache.memory import Held, Memory
from gateway.cache.rules import Lifetime, Verdict, initial_age_s, refreshed, stored_headers
from gateway.cache.store import Store
from gateway.errors import Overloaded
from gateway.model import Answer

if TYPE_CHECKING:
    from gateway.cache.engine import Want

MAX_BODY_BYTES = 1024 * 1024
# A body that takes longer is passed on as it comes, and not stored.
READING_S = 2.0
# Lifetimes are shortened by up to this share, so that what was stored together does not end together.
JITTER = 0.1


@dataclass(slots=True)
class Loading:
    """One leader's way to an answer. `held` is what may be validated, or stand in; `version` the paths' state in Redis, empty
    without Redis; `since` the place in the memory's sequence of changes."""

    want: Want
    variant: Variant
    text: str
    spec: Spec
    token: str
    since: int
    began: float
    version: str = ""
    held: Held | None = None

    def outdated(self) -> None:
        """What is held has been changed since: not even a failure brings it back."""
        self.held = None


class Loader:
    """Thread-safe."""

    def __init__(self, store: Store, memory: Memory, clock: Clock) -> None:
        self._store = store
        self._memory = memory
        self._clock = clock

    def load(
        self,
        run: Loading,
        load: Callable[[Mapping[str, str]], Answer],
        flight: Flight,
        count: Callable[[str], None],
    ) -> Answer:
        """Ask the service. The lease is given back at the latest when this ends."""
        want = run.want
        stored = False
        try:
            born, checked = self._clock.time(), self._clock.monotonic()
            answer = load(self._conditions(run))
            if run.held is not None and answer.status in FAILED_STATUSES and self._may_stand_in(run.held):
                answer.close()
                return self._instead(run, count)
            if run.held is not None and answer.status == 304:
                answer = self._validated(run.held.entry, answer)
            verdict = want.verdict(answer)
            if verdict is not None and _comes_bit_by_bit(answer):
                self._keep_beside(run, answer, verdict, born, checked, flight)
            else:
                body = self._read(answer) if verdict is not None else None
                if verdict is None or body is None:
                    return self._not_stored(run, answer, flight, count)
                entry = self._entry(answer, body, verdict, born, run.version)
                stored = self._keep(run, entry, verdict, checked, flight)
            count("miss")
            return passed_on(want.headers, answer, "HIT" if answer.source == "cache" else "MISS")
        except (CallError, Overloaded):
            if run.held is None or not self._may_stand_in(run.held):
                raise
            return self._instead(run, count)
        finally:
            if not stored and run.version:
                self._store.release(run.text, run.token)

    def _read(self, answer: Answer) -> bytes | None:
        return read_whole(answer, MAX_BODY_BYTES, self._in_time())

    def _in_time(self) -> Callable[[], bool]:
        until = self._clock.monotonic() + READING_S
        return lambda: self._clock.monotonic() < until

    def _keep_beside(
        self, run: Loading, answer: Answer, verdict: Verdict, born: float, checked: float, flight: Flight
    ) -> None:
        """Have it stored when its client has got all of it. Nobody else waits: that is at the client's pace."""
        flight.alone = True

        def keep(body: bytes) -> None:
            entry = self._entry(answer, body, verdict, born, run.version)
            self._keep(run, entry, verdict, checked, flight)

        answer.body = Beside(answer.body, MAX_BODY_BYTES, self._in_time(), keep)

    def _conditions(self, run: Loading) -> dict[str, str]:
        """Our own conditions in place of the client's."""
        sent = {name: "" for name in ("if-none-match", "if-modified-since") if name in run.want.headers}
        entry = run.held.entry if run.held is not None and run.held.entry.status == 200 else None
        if entry is not None:
            tag, changed = entry.header("etag"), entry.header("last-modified")
            if tag is not None:
                sent["if-none-match"] = tag
            elif changed is not None:
                sent["if-modified-since"] = changed
        return sent

    def _validated(self, entry: Entry, answer: Answer) -> Answer:
        """The stored answer with what a 304 says of it."""
        headers = refreshed(entry.headers, answer.headers)
        headers += [("Content-Length", str(len(entry.body))), ("Age", "0")]
        return replace(answer, status=entry.status, headers=headers, body=entry.body, source="cache")

    def _not_stored(
        self, run: Loading, answer: Answer, flight: Flight, count: Callable[[str], None]
    ) -> Answer:
        flight.alone = True
        if answer.status == 200:
            run.want.pass_by()
            self._memory.drop(run.variant)
        count("bypass")
        return passed_on(run.want.headers, answer, "BYPASS")

    def _entry(self, answer: Answer, body: bytes, verdict: Verdict, born: float, version: str) -> Entry:
        age_s = initial_age_s(answer.headers)
        life = verdict.lifetime
        fresh_s = life.fresh_s * (1.0 - JITTER * self._clock.random())
        return Entry(
            answer.status,
            stored_headers(answer.headers),
            body,
            born - age_s,
            Lifetime(fresh_s, life.swr_s, life.sie_s),
            version,
        )

    def _keep(self, run: Loading, entry: Entry, verdict: Verdict, checked: float, flight: Flight) -> bool:
        """Keep it here, and in Redis. Whether the lease is given back with it."""
        want, spec = run.want, Spec(verdict.vary, not verdict.shared)
        self._memory.learn(want.base, spec)
        want.look_up()
        variant = want.variant(spec)
        if variant is None:
            return False
        age_s = max(0.0, self._clock.time() - entry.born)
        held = Held(entry, self._clock.monotonic() - age_s, checked)
        flight.brought = (variant, held)
        self._memory.put(variant, held, run.since)
        kept_s = entry.lifetime.kept_s - age_s
        if not run.version or kept_s <= 0:
            return False
        text = run.text if variant == run.variant else variant.text()
        saved = self._store.save(variant, text, spec, pack(text, entry), run.token, kept_s)
        return saved and text is run.text

    def _may_stand_in(self, held: Held) -> bool:
        life = held.entry.lifetime
        return self._clock.monotonic() - held.born < life.fresh_s + life.sie_s

    def _instead(self, run: Loading, count: Callable[[str], None]) -> Answer:
        """What is held, in place of a failure. Nobody asks again for a moment."""
        held = run.held
        assert held is not None
        now = self._clock.monotonic()
        held.rest(now)
        count("stale_if_error")
        age_s = now - held.born
        return give(
            run.want.headers, run.want.method, held.entry, "STALE", age_s, age_s - held.entry.lifetime.fresh_s
        )


def _comes_bit_by_bit(answer: Answer) -> bool:
    """Whether the body is made while it is sent, so that its end may be far."""
    return not isinstance(answer.body, bytes) and answer.header("content-length") is None
