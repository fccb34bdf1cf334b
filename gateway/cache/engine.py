"""How an answer is found: in this process, in Redis, or by asking for it, once for all requests that want it.

held here and fresh ─▶ HIT          stale, but may be given meanwhile ─▶ STALE, and one asks in the background
else one of this process leads: Redis ─▶ HIT; its lease ─▶ asks the service; another's lease ─▶ waits for what that one stores

No request waits for an answer that may be for another alone: a request with a token asks for itself until an answer of that path
has been seen. So does one whose caller would leave before the others do.

Whether a stored answer may be given is decided in `gateway.cache.trust`.
"""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Callable
from functools import partial

import structlog

from discovery.clock import Clock
from gateway.cache.coalesce import Flight, Flights, copy_error
from gateway.cache.entry import give, pass_on, unpack
from gateway.cache.key import Spec, Variant
from gateway.cache.link import Link
from gateway.cache.loading import Brought, Count, Loader, Loading, Want
from gateway.cache.memory import Held, Memory
from gateway.cache.store import LOAD_S, Fetched, Store, token
from gateway.cache.trust import is_current, state_of
from gateway.model import Answer
from services.kit.redis_client import Away

log = structlog.get_logger(__name__)

# Another's load is looked for this often.
POLL_S = 0.02
# How often the way from memory to the service is taken when what it brought is for other callers.
TRIES = 3
BACKGROUND = 32


class Engine:
    """Thread-safe; works under gevent."""

    def __init__(self, store: Store, memory: Memory, link: Link, clock: Clock, count: Count) -> None:
        self._store = store
        self._memory = memory
        self._link = link
        self._clock = clock
        self._count = count
        self._flights: Flights[Brought] = Flights()
        self._background = threading.BoundedSemaphore(BACKGROUND)
        self._loader = Loader(store, memory, clock, count)

    def obtain(self, want: Want) -> Answer:
        """The answer, with X-Cache. What `want.load` raises passes through, unless a stored answer may stand in."""
        for _ in range(TRIES):
            known = self._memory.spec(want.base)
            spec = known or want.guess
            variant = want.variant(spec)
            if variant is None:
                break
            answer = self._from_memory(want, variant)
            if answer is not None:
                return answer
            if want.method == "HEAD":
                break  # it brings nothing to store
            if not want.patient or (known is None and "authorization" in want.headers):
                answer = self._lead(self._begin(want, variant, spec), alone=True)
            else:
                flight, leads = self._flights.enter(variant)
                if leads:
                    answer = self._lead_flight(self._begin(want, variant, spec, flight))
                elif not flight.wait(want.left_s(self._clock.monotonic())) or flight.alone:
                    break
                elif flight.error is not None:
                    raise copy_error(flight.error)
                else:
                    answer = self._from_flight(want, flight)
            if answer is not None:
                return answer
        self._count("bypass")
        return pass_on(want.headers, want.load({}), "BYPASS")

    # -- what is there already

    def _from_memory(self, want: Want, variant: Variant) -> Answer | None:
        """What this process holds, where it may be given; a stale one is fetched again in the background."""
        held = self._memory.get(variant)
        if held is None:
            return None
        now = self._clock.monotonic()
        resting = now < held.resting
        if not resting and not self._link.trusts(held.checked, now):
            return None
        return self._give(want, held, now, lambda: self._refresh(want, variant), resting=resting)

    def _from_flight(self, want: Want, flight: Flight[Brought]) -> Answer | None:
        """What another request brought, if it is what is wanted here. Asked for after this request had come, it needs no place in
        the memory: changes that come without end would leave none."""
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
        """The entry, where it may be given. `refresh` None: only a fresh one. `resting`: the service is not asked at the moment."""
        # What was asked for after the request had come is new enough for every request.
        most_age_s = want.most_age_s if held.born < want.began else math.inf
        state = state_of(
            held.entry.lifetime,
            now - held.born,
            most_age_s=most_age_s,
            stale=refresh is not None,
            resting=resting,
        )
        if state is None:
            return None
        if state == "STALE" and refresh is not None and not resting:
            refresh()
        self._count(state.lower())
        return give(want.headers, want.method, held.entry, state, now - held.born)

    # -- one for all

    def _begin(
        self, want: Want, variant: Variant, spec: Spec, flight: Flight[Brought] | None = None
    ) -> Loading:
        since, began = self._memory.now(), self._clock.monotonic()
        run = Loading(want, variant, spec, flight or Flight(), token(), since, began, variant.text())
        run.held = self._memory.get(variant)
        return run

    def _lead_flight(self, run: Loading) -> Answer | None:
        """As `_lead`, with others waiting."""
        try:
            return self._lead(run)
        except BaseException as error:
            run.flight.fail(error)
            raise
        finally:
            self._flights.leave(run.variant, run.flight)

    def _lead(self, run: Loading, *, background: bool = False, alone: bool = False) -> Answer | None:
        """None when the way has to be gone again, with what has been learnt. `alone`: for no other request, and without a word to
        other processes."""
        refresh = None if background else lambda: self._refresh_soon(run)
        until = min(run.want.deadline, run.began + LOAD_S)
        try:
            while True:
                fetched = self._look(run, lease=not alone)
                if fetched.spec is not None:
                    return None
                if run.held is not None and run.held.checked >= run.began:
                    answer = self._give(run.want, run.held, self._clock.monotonic(), refresh)
                    if answer is not None:
                        if fetched.leased:
                            self._store.release(run.text, run.token)
                        return answer
                # With nothing stored, the look has asked for the lease already.
                if alone or fetched.leased is not False:
                    break
                if fetched.data is not None and self._store.lease(run.text, run.token):
                    break
                if background:
                    return None
                if self._clock.monotonic() >= until:
                    break
                self._clock.sleep(POLL_S)
        except Away:
            run.version = ""
        return self._loader.load(run)

    def _look(self, run: Loading, *, lease: bool) -> Fetched:
        """Ask Redis for the variant; `run.held` is what is valid of it afterwards: an answer with the version that its path has
        now. Raises Away."""
        checked = self._clock.monotonic()
        fetched = self._store.fetch(run.variant, run.text, run.spec, run.token, lease=lease)
        run.version = fetched.version
        if fetched.spec is not None:
            self._memory.learn(run.want.base, fetched.spec)
        if fetched.data is None:
            # Redis may have lost what is held here: its version says whether it still holds.
            if run.held is not None and is_current(run.held.entry.version, run.version):
                run.held.checked = checked
            else:
                run.held = None
            return fetched
        entry = unpack(run.text, fetched.data, self._clock.time())
        if entry is None or not is_current(entry.version, run.version):
            run.held = None  # changed since: not even a failure brings it back
            return fetched
        age_s = max(0.0, self._clock.time() - entry.born)
        run.held = Held(entry, self._clock.monotonic() - age_s, checked)
        self._memory.put(run.variant, run.held, run.since)
        self._memory.learn(run.want.base, run.spec)
        return fetched

    # -- in the background

    def _refresh_soon(self, run: Loading) -> None:
        """By the leader of a flight, which ends with its stale answer: the next one is the background's."""
        self._flights.leave(run.variant, run.flight)
        self._refresh(run.want, run.variant)

    def _refresh(self, want: Want, variant: Variant) -> None:
        """Ask again beside the request; nothing where another does already, or too many do."""
        if want.method != "GET":
            return
        flight, leads = self._flights.enter(variant)
        if not leads:
            return
        if not self._background.acquire(blocking=False):
            self._flights.leave(variant, flight)
            return
        want.detach(self._clock.monotonic())
        work = partial(contextvars.copy_context().run, self._load_anew, want, variant, flight)
        try:
            threading.Thread(target=work, name="cache-refresh", daemon=True).start()
        except RuntimeError:  # no thread to be had
            self._flights.leave(variant, flight)
            self._background.release()

    def _load_anew(self, want: Want, variant: Variant, flight: Flight[Brought]) -> None:
        spec = self._memory.spec(want.base) or want.guess
        try:
            answer = self._lead(self._begin(want, variant, spec, flight), background=True)
            if answer is not None:
                answer.close()
        except Exception as error:  # the client has its answer, and the next one will see
            log.info("refresh failed", service=want.base.service, error=type(error).__name__)
            held = self._memory.get(variant)
            if held is not None:
                held.rest(self._clock.monotonic())
        finally:
            self._flights.leave(variant, flight)
            self._background.release()
