"""How an answer is found: in this process, in Redis, or by asking for it, once for all who want it.

held here and fresh ─▶ HIT          stale, but may be given meanwhile ─▶ STALE, and one asks in the background
else one of this process leads: Redis ─▶ HIT; its lease ─▶ asks the service; another's lease ─▶ waits for what he stores

Nobody waits for an answer that may be for another alone: a request with a token asks for itself until an answer of that path
has been seen. So does one whose caller would leave before the others do.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from discovery.clock import Clock
from gateway.cache.coalesce import Flight, Flights, again
from gateway.cache.entry import Entry, unpack
from gateway.cache.giving import give, passed_on
from gateway.cache.key import Base, Spec, Variant, variant_of
from gateway.cache.leases import LOAD_S
from gateway.cache.link import Link
from gateway.cache.loading import Loader, Loading
from gateway.cache.memory import Held, Memory
from gateway.cache.rules import NO_WISH, Verdict, Wish
from gateway.cache.store import Fetched, Store, token
from gateway.errors import Refused
from gateway.model import Answer
from services.kit.redis_client import Away

log = structlog.get_logger(__name__)

# What is asked of the upstream: the request with these headers in place of its own; one with an empty value is left out.
Load = Callable[[Mapping[str, str]], Answer]

# Another's load is looked for this often.
POLL_S = 0.02
# So often the path from memory to the service is gone through when what was found on it belongs to others.
TRIES = 3
BACKGROUND = 32
Count = Callable[[str], None]


@dataclass(slots=True)
class Want:
    """One request for an answer. `audience` tells for whom it is, if it is for its asker alone (None: cannot be told).

    `began` and `deadline` are points on the monotonic clock. `patient`: its load may be waited for by others. `detach`: the asker
    has his answer, what goes on is not his. `pass_by`: what comes is never stored, so that waiting for each other is of no use;
    `look_up`: it is.
    """

    method: str
    base: Base
    headers: Mapping[str, str]
    audience: Callable[[], str | None]
    verdict: Callable[[Answer], Verdict | None]
    guess: Spec
    began: float
    deadline: float
    wish: Wish = NO_WISH
    patient: bool = True
    detach: Callable[[], None] = field(default=lambda: None)
    pass_by: Callable[[], None] = field(default=lambda: None)
    look_up: Callable[[], None] = field(default=lambda: None)

    def variant(self, spec: Spec) -> Variant | None:
        return variant_of(self.base, spec, self.headers, self.audience() if spec.own else None)

    def left_s(self, now: float) -> float:
        """How long it waits for others, all in all."""
        return min(self.deadline, self.began + LOAD_S) - now


class Engine:
    """Thread-safe; works under gevent."""

    def __init__(self, store: Store, memory: Memory, link: Link, clock: Clock, count: Count) -> None:
        self._store = store
        self._memory = memory
        self._link = link
        self._clock = clock
        self._count = count
        self._flights = Flights()
        self._background = threading.BoundedSemaphore(BACKGROUND)
        self._loader = Loader(store, memory, clock)

    def obtain(self, want: Want, load: Load) -> Answer:
        """The answer, with X-Cache. What `load` raises passes through, unless a stored answer may stand in."""
        for _ in range(TRIES):
            known = self._memory.spec(want.base)
            spec = known or want.guess
            variant = want.variant(spec)
            if variant is None:
                break
            answer = self.held(want, variant, load)
            if answer is not None:
                return answer
            if want.wish.only_stored or want.method == "HEAD":
                answer = self._stored(want, variant, spec, load)
                if answer is not None:
                    return answer
                break
            if not want.patient or (known is None and "authorization" in want.headers):
                answer = self._lead(want, variant, spec, load, Flight(), alone=True)
                if answer is not None:
                    return answer
                continue
            flight, leads = self._flights.enter(variant)
            if leads:
                answer = self._leading(want, variant, spec, load, flight)
                if answer is not None:
                    return answer
            elif not flight.wait(want.left_s(self._clock.monotonic())) or flight.alone:
                break
            elif flight.error is not None:
                raise again(flight.error)
            else:
                answer = self._brought(want, flight)
                if answer is not None:
                    return answer
        if want.wish.only_stored:
            raise Refused(504, "Nothing is stored for this.", service=want.base.service)
        self._count("bypass")
        return passed_on(want.headers, load({}), "BYPASS")

    def held(self, want: Want, variant: Variant, load: Load) -> Answer | None:
        """What this process holds, where it may be given; a stale one is asked for anew in the background."""
        held = self._memory.get(variant)
        if held is None:
            return None
        now = self._clock.monotonic()
        resting = now < held.resting
        if not resting and not self._link.trusts(held.checked, now):
            return None
        return self._give(want, held, now, lambda: self._refresh(want, variant, load), resting=resting)

    def _brought(self, want: Want, flight: Flight) -> Answer | None:
        """What another brought, if it is what is wanted here. Asked for after this request had come, it needs no place in the
        memory: changes that come without end would leave none."""
        if flight.brought is None:
            return None
        variant, held = flight.brought
        spec = Spec(variant.vary, bool(variant.audience))
        if held.checked < want.began or want.variant(spec) != variant:
            return None
        self._count("hit")
        return give(want.headers, want.method, held.entry, "HIT", self._clock.monotonic() - held.born)

    def _give(
        self, want: Want, held: Held, now: float, refresh: Callable[[], None] | None, *, resting: bool = False
    ) -> Answer | None:
        """The entry, where it may be given. `refresh` None: only a fresh one. `resting`: nobody is asked at the moment."""
        entry, age_s = held.entry, now - held.born
        life, wish = entry.lifetime, want.wish
        stale_s = age_s - life.fresh_s
        # What was asked for after the request had come is new enough for everybody.
        old = wish is not NO_WISH and held.born < want.began
        if old and ((wish.most_s is not None and age_s >= wish.most_s) or -stale_s < wish.left_s):
            return None
        if stale_s < 0:
            self._count("hit")
            return give(want.headers, want.method, entry, "HIT", age_s)
        if refresh is None or stale_s >= (max(life.swr_s, life.sie_s) if resting else life.swr_s):
            return None
        if not resting:
            refresh()
        self._count("stale")
        return give(want.headers, want.method, entry, "STALE", age_s, stale_s)

    # -- one for all

    def _leading(self, want: Want, variant: Variant, spec: Spec, load: Load, flight: Flight) -> Answer | None:
        """None when the way has to be gone again, with what has been learnt."""
        try:
            return self._lead(want, variant, spec, load, flight)
        except BaseException as error:
            flight.failed(error)
            raise
        finally:
            self._flights.leave(variant, flight)

    def _lead(
        self,
        want: Want,
        variant: Variant,
        spec: Spec,
        load: Load,
        flight: Flight,
        *,
        background: bool = False,
        alone: bool = False,
    ) -> Answer | None:
        """`alone`: for nobody else, and without a word to other processes."""
        run = Loading(
            want, variant, variant.text(), spec, token(), self._memory.now(), self._clock.monotonic()
        )
        run.held = self._memory.get(variant)
        refresh = None if background else lambda: self._refresh_soon(want, variant, load, flight)
        until = min(want.deadline, self._clock.monotonic() + LOAD_S)
        try:
            while True:
                fetched = self._look(run, lease=not alone)
                if fetched.spec is not None:
                    self._memory.learn(want.base, fetched.spec)
                    return None
                if run.held is not None and run.held.checked >= run.began:
                    answer = self._give(want, run.held, self._clock.monotonic(), refresh)
                    if answer is not None:
                        if fetched.leased:
                            self._store.release(run.text, run.token)
                        return answer
                if alone or fetched.leased is not False or self._leased(run, fetched):
                    break
                if background:
                    return None
                if self._clock.monotonic() >= until:
                    break
                self._clock.sleep(POLL_S)
        except Away:
            run.version = ""
        return self._loader.load(run, load, flight, self._count)

    def _look(self, run: Loading, *, lease: bool) -> Fetched:
        """Ask Redis for the variant; `run` holds what is valid of it afterwards. Raises Away."""
        checked = self._clock.monotonic()
        fetched = self._store.fetch(run.variant, run.text, run.spec, run.token, lease=lease)
        run.version = fetched.version
        if fetched.data is None:
            # Redis may have lost what is held here: its version tells whether it still holds.
            if run.held is not None and run.version and run.held.entry.version == run.version:
                run.held.checked = checked
            else:
                run.outdated()
            return fetched
        entry = unpack(run.text, fetched.data, self._clock.time())
        if entry is None or not entry.version or entry.version != run.version:
            run.outdated()
            return fetched
        run.held = self.hold(run.variant, entry, checked, run.since)
        self._memory.learn(run.want.base, run.spec)
        return fetched

    def hold(self, variant: Variant, entry: Entry, checked: float, since: int) -> Held:
        """Keep here what Redis has."""
        age_s = max(0.0, self._clock.time() - entry.born)
        held = Held(entry, self._clock.monotonic() - age_s, checked)
        self._memory.put(variant, held, since)
        return held

    def _leased(self, run: Loading, fetched: Fetched) -> bool:
        """With nothing stored, `fetch` has asked for the lease already. Raises Away."""
        return fetched.data is not None and self._store.lease(run.text, run.token)

    def _stored(self, want: Want, variant: Variant, spec: Spec, load: Load) -> Answer | None:
        """What Redis has, without asking the service for it."""
        run = Loading(
            want, variant, variant.text(), spec, token(), self._memory.now(), self._clock.monotonic()
        )
        try:
            checked = self._clock.monotonic()
            fetched = self._store.fetch(variant, run.text, spec, run.token, lease=False)
        except Away:
            return None
        entry = unpack(run.text, fetched.data, self._clock.time()) if fetched.data is not None else None
        if entry is None or not entry.version or entry.version != fetched.version:
            return None
        held = self.hold(variant, entry, checked, run.since)
        return self._give(want, held, self._clock.monotonic(), lambda: None)

    # -- in the background

    def _refresh_soon(self, want: Want, variant: Variant, load: Load, flight: Flight) -> None:
        """By the leader of a flight, which ends with his stale answer: the next one is the background's."""
        self._flights.leave(variant, flight)
        self._refresh(want, variant, load)

    def _refresh(self, want: Want, variant: Variant, load: Load) -> None:
        """Ask anew, besides the request; nothing when somebody does already, or too many do."""
        if want.method != "GET":
            return
        flight, leads = self._flights.enter(variant)
        if not leads:
            return
        if not self._background.acquire(blocking=False):
            self._flights.leave(variant, flight)
            return
        want.detach()
        context = contextvars.copy_context()

        def run() -> None:
            try:
                context.run(self._refreshed, want, variant, load, flight)
            finally:
                self._flights.leave(variant, flight)
                self._background.release()

        try:
            threading.Thread(target=run, name="cache-refresh", daemon=True).start()
        except RuntimeError:  # no thread to be had
            self._flights.leave(variant, flight)
            self._background.release()

    def _refreshed(self, want: Want, variant: Variant, load: Load, flight: Flight) -> None:
        spec = self._memory.spec(want.base) or want.guess
        try:
            answer = self._lead(want, variant, spec, load, flight, background=True)
            if answer is not None:
                answer.close()
        except Exception as error:  # the client has his answer, and the next one will see
            log.info("refresh failed", service=want.base.service, error=type(error).__name__)
            held = self._memory.get(variant)
            if held is not None:
                held.rest(self._clock.monotonic())
