"""Asking the service for an answer, and storing it where that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from discovery.calls.guard import FAILED_STATUSES
from discovery.clock import Clock
from discovery.errors import CallError
from gateway.cache.coalesce import Flight
from gateway.cache.entry import Entry, give, pack, pass_on
from gateway.cache.key import Base, Spec, Variant, variant_of
from gateway.cache.memory import Held, Memory
from gateway.cache.rules import Lifetime, Verdict, initial_age_s, refreshed, stored_headers
from gateway.cache.store import LOAD_S, Store
from gateway.cache.trust import may_stand_in
from gateway.errors import Overloaded
from gateway.model import Answer, Incoming

# What is asked of the upstream: the request with these headers in place of its own; one with an empty value is left out.
Load = Callable[[Mapping[str, str]], Answer]
Count = Callable[[str], None]
# An answer, and under which name it may be given to others.
Brought = tuple[Variant, Held]

MAX_BODY_BYTES = 1024 * 1024
# A body that takes longer is passed on as it comes, and not stored.
READING_S = 2.0
# Lifetimes are shortened by up to this share, so that what was stored together does not end together.
JITTER = 0.1
# The share of the time that a load may take which a caller must have left for others to wait for what it asks for.
PATIENT = 0.8


@dataclass(slots=True)
class Want:
    """One request for an answer. `began` and `deadline` are points on the monotonic clock.

    `asked` is the request that would be sent, `guess` on what its answer depends while none has been seen. `audience` says for which
    caller the answer is, if it is for that one alone (None: cannot be said), and `verdict` how it may be stored. `seen` hears
    whether what came is stored.
    """

    method: str
    base: Base
    headers: Mapping[str, str]
    guess: Spec
    began: float
    deadline: float
    most_age_s: float
    asked: Incoming | None
    audience: Callable[[], str | None]
    verdict: Callable[[Answer], Verdict | None]
    load: Load
    seen: Callable[[bool], None] = lambda _: None

    def detach(self, now: float) -> None:
        """The client has its answer: what goes on ends neither with its connection, nor with its time."""
        if self.asked is not None:
            self.asked.connection = None
            self.asked.deadline = now + self.asked.timeout_s

    @property
    def patient(self) -> bool:
        """Whether other requests may wait for its load: its caller will not leave before they do."""
        asked = self.asked
        return asked is None or asked.deadline - self.began >= PATIENT * min(LOAD_S, asked.timeout_s)

    def variant(self, spec: Spec) -> Variant | None:
        return variant_of(self.base, spec, self.headers, self.audience() if spec.own else None)

    def left_s(self, now: float) -> float:
        """How long it waits for others, all in all."""
        return min(self.deadline, self.began + LOAD_S) - now


@dataclass(slots=True)
class Loading:
    """One leader's way to an answer. `held` is what may be validated, or stand in; `version` the paths' state in Redis, empty
    without Redis; `since` the place in the memory's sequence of changes."""

    want: Want
    variant: Variant
    spec: Spec
    flight: Flight[Brought]
    token: str
    since: int
    began: float
    text: str
    version: str = ""
    held: Held | None = None


class Loader:
    """Thread-safe."""

    def __init__(self, store: Store, memory: Memory, clock: Clock, count: Count) -> None:
        self._store = store
        self._memory = memory
        self._clock = clock
        self._count = count

    def load(self, run: Loading) -> Answer:
        """Ask the service. The lease is given back at the latest when this ends."""
        held = run.held
        stored: bool | None = False
        try:
            born, checked = self._clock.time(), self._clock.monotonic()
            answer = run.want.load(_conditions(run))
            if held is not None and answer.status in FAILED_STATUSES and self._may_stand_in(held):
                answer.close()
                return self._give_stale(run, held)
            if held is not None and answer.status == 304:
                answer = _validated(held.entry, answer)
            stored = self._store_if_allowed(run, answer, born, checked)
            if stored is None:
                return self._pass_by(run, answer)
            self._count("miss")
            return pass_on(run.want.headers, answer, "HIT" if answer.source == "cache" else "MISS")
        except (CallError, Overloaded):
            if held is None or not self._may_stand_in(held):
                raise
            return self._give_stale(run, held)
        finally:
            if not stored and run.version:
                self._store.release(run.text, run.token)

    def _store_if_allowed(self, run: Loading, answer: Answer, born: float, checked: float) -> bool | None:
        """Keep the answer, now or when its client has got all of it. Whether the lease is given back with it; None: not kept."""
        verdict = run.want.verdict(answer)
        if verdict is None:
            return None
        until = self._clock.monotonic() + READING_S

        def go_on() -> bool:
            return self._clock.monotonic() < until

        def keep(body: bytes) -> bool:
            return self._keep(run, self._entry(answer, body, verdict, born, run.version), verdict, checked)

        if not isinstance(answer.body, bytes) and answer.header("content-length") is None:
            # Its end may be far, and comes at the client's pace: no other request waits for it.
            run.flight.alone = True
            answer.body = Copied(answer.body, MAX_BODY_BYTES, go_on, keep)
            return False
        body = read_whole(answer, MAX_BODY_BYTES, go_on)
        return None if body is None else keep(body)

    def _pass_by(self, run: Loading, answer: Answer) -> Answer:
        run.flight.alone = True
        if answer.status == 200:
            run.want.seen(False)
            self._memory.drop(run.variant)
        self._count("bypass")
        return pass_on(run.want.headers, answer, "BYPASS")

    def _entry(self, answer: Answer, body: bytes, verdict: Verdict, born: float, version: str) -> Entry:
        life = verdict.lifetime
        fresh_s = life.fresh_s * (1.0 - JITTER * self._clock.random())
        lifetime = Lifetime(fresh_s, life.swr_s, life.sie_s)
        born -= initial_age_s(answer.headers)
        return Entry(answer.status, stored_headers(answer.headers), body, born, lifetime, version)

    def _keep(self, run: Loading, entry: Entry, verdict: Verdict, checked: float) -> bool:
        """Keep it here, and in Redis. Whether the lease is given back with it."""
        want, spec = run.want, Spec(verdict.vary, not verdict.shared)
        self._memory.learn(want.base, spec)
        want.seen(True)
        variant = want.variant(spec)
        if variant is None:
            return False
        age_s = max(0.0, self._clock.time() - entry.born)
        held = Held(entry, self._clock.monotonic() - age_s, checked)
        run.flight.brought = (variant, held)
        self._memory.put(variant, held, run.since)
        kept_s = entry.lifetime.kept_s - age_s
        if not run.version or kept_s <= 0:
            return False
        text = run.text if variant == run.variant else variant.text()
        saved = self._store.save(variant, text, spec, pack(text, entry), run.token, kept_s)
        return saved and text is run.text

    def _may_stand_in(self, held: Held) -> bool:
        return may_stand_in(held.entry.lifetime, self._clock.monotonic() - held.born)

    def _give_stale(self, run: Loading, held: Held) -> Answer:
        """What is held, in place of a failure. The service is not asked again for a moment."""
        now = self._clock.monotonic()
        held.rest(now)
        self._count("stale_if_error")
        return give(run.want.headers, run.want.method, held.entry, "STALE", now - held.born)


def _conditions(run: Loading) -> dict[str, str]:
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


def _validated(entry: Entry, answer: Answer) -> Answer:
    """The stored answer with what a 304 says of it."""
    headers = refreshed(entry.headers, answer.headers)
    headers += [("Content-Length", str(len(entry.body))), ("Age", "0")]
    return replace(answer, status=entry.status, headers=headers, body=entry.body, source="cache")


class Copied:
    """A body that is passed on as it comes, and given to `keep` when it has come whole, while `go_on` allows it.

    Closing it closes the body.
    """

    __slots__ = ("_begun", "_body", "_chunks", "_go_on", "_keep", "_most", "_pieces")

    def __init__(
        self,
        body: bytes | Iterable[bytes],
        most_bytes: int,
        go_on: Callable[[], bool],
        keep: Callable[[bytes], object],
    ) -> None:
        self._body = body
        self._chunks = iter([body] if isinstance(body, bytes) else body)
        self._begun: list[bytes] = []
        self._most = most_bytes
        self._go_on = go_on
        self._keep = keep
        self._pieces: list[bytes] | None = []

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._begun.pop(0) if self._begun else self._read()

    def _read(self) -> bytes:
        pieces = self._pieces
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._pieces = None
            if pieces is not None:
                self._keep(b"".join(pieces))
            raise
        if pieces is not None:
            pieces.append(chunk)
            self._most -= len(chunk)
            if self._most < 0 or not self._go_on():
                self._pieces = None
        return chunk

    def read_ahead(self) -> bytes | None:
        """All of it; None when it stops being kept: what has been read comes first then."""
        pieces = self._pieces
        assert pieces is not None
        while self._pieces is not None:
            try:
                self._read()
            except StopIteration:
                return b"".join(pieces)
        self._begun = pieces
        return None

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


def read_whole(answer: Answer, most_bytes: int, go_on: Callable[[], bool]) -> bytes | None:
    """The body of an answer that says its length, which holds it afterwards; None when it is longer, or `go_on` says no before
    its end: then the answer passes it on as it comes.

    Raises what reading raises.
    """
    if isinstance(answer.body, bytes):
        return answer.body if len(answer.body) <= most_bytes else None
    length = answer.header("content-length")
    if length is None or not length.isdigit() or int(length) > most_bytes:
        return None
    copied = Copied(answer.body, most_bytes, go_on, keep=lambda _: None)
    whole = copied.read_ahead()
    answer.body = copied if whole is None else whole
    return whole
