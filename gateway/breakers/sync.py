"""Breakers of one process and those of the rest of its group: what is told, what is believed, and what an operator orders.

Every process breaks on its own. One that trips publishes it, the others open too, and are quiet: only what a process found
out itself is published, so that nothing echoes. Who tripped tries again when its time is over; those who only heard of it
wait for twice that time, and open or close with its verdict. If two trip at once, the one whose name comes first tries. So the
trials are those of one process; if that one dies or loses Redis, the others try by themselves in the end.

News that is older than the last closing here, has run out, or was heard before changes nothing. Clocks of one group should agree
within a second: on a machine whose clock is behind, news of others holds for longer by that much, never for longer than it may.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal

import structlog

from discovery.calls.client import ServiceClient
from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul.static import Reading
from discovery.model import Domain
from discovery.resilience.breaker import BreakerSnapshot, Transition
from gateway.breakers import messages as shapes
from gateway.breakers.messages import News, State
from gateway.breakers.pictures import GATEWAY, Pictures
from gateway.metrics import BreakerMetrics
from gateway.redis_link import Away, Line

log = structlog.get_logger(__name__)

TICK_S = 1.0
# How long an order to close or try holds for processes that hear of it late, and how long whoever gave it waits for them.
ORDER_S = 10.0
ANSWER_S = 1.0
_POLL_S = 0.02
_READ_AT_ONCE = 200
_MAX_HEARD = 512


@dataclass(frozen=True, slots=True)
class Outcome:
    """Who carried out an order and who, known in the catalog, did not say so in time. `shared`: whether Redis took it."""

    id: str
    taken_by: list[str]
    missing: list[str]
    shared: bool


class Sharing:
    """Shares the breakers of `client` within its group. Thread-safe; `start` it in the worker, once the instance has its name.

    Redis is only touched by its own two threads, and by who gives an order or looks; never by who makes a call.
    """

    def __init__(
        self,
        client: ServiceClient,
        view: Reading,
        *,
        group: Domain,
        instance: str,
        line: Line,
        metrics: BreakerMetrics,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._client = client
        self._view = view
        self.group = group
        self.instance = instance
        self._line = line
        self._metrics = metrics
        self._clock = clock
        self.pictures = Pictures(client, view, line, group, instance, clock)
        # A name for this run: a process that comes back is not the one whose news it finds.
        self._prefix = f"{instance}/{secrets.token_hex(4)}/"
        self._lock = threading.Lock()
        self._heard: dict[str, None] = {}
        self._joined: dict[str, deque[str]] = {}
        self._orders = 0
        # The last change of each service that has to be told; bounded by the number of services.
        self._outbox: dict[str, Transition] = {}
        self._learned: set[str] = set()
        self._wake = threading.Event()
        self._stopped = threading.Event()

    # -- life

    def start(self) -> None:
        """Begin to tell and to listen. Without Redis there is nobody to talk to."""
        if not self._line.exists:
            return
        threading.Thread(target=self._tell, name="breaker-teller", daemon=True).start()
        threading.Thread(target=self._listen, name="breaker-listener", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        self._wake.set()

    @property
    def hearing(self) -> bool:
        """Whether this process hears of the others now."""
        return self._line.hearing

    def changed(self, service: str, transition: Transition) -> None:
        """To be told of every change of a breaker of the client; called within the breaker's lock, costs microseconds."""
        if transition.who != "shared" and transition.state != "half-open":
            self._outbox[service] = transition
        self._wake.set()

    # -- telling

    def _tell(self) -> None:
        due = self._clock.monotonic()
        while not self._stopped.is_set():
            self._wake.wait(max(0.0, due - self._clock.monotonic()))
            self._wake.clear()
            due = self._clock.monotonic() + TICK_S
            try:
                self._step()
            except Away:
                continue
            except Exception as error:  # a thread that ends would end the sharing
                log.error("sharing of breakers failed", error=type(error).__name__, exc_info=error)

    def _step(self) -> None:
        for service in list(self._outbox):
            self._send(service)
        self._learn()
        self.pictures.publish()

    def _send(self, service: str) -> None:
        transition = self._outbox.pop(service, None)
        if transition is None:
            return
        key = shapes.trip_key(self.group, service)
        news = self._news(service, transition)
        try:
            if transition.who == "hand":  # told by whoever ordered it
                self._line.write(lambda pipe: pipe.delete(key))
                return
            left_ms = int(news.left_s(self._clock.time()) * 1000)
            if left_ms <= 0:
                return
            data = news.model_dump_json().encode()
            self._line.write(
                lambda pipe: pipe.publish(shapes.trips_channel(self.group), data),
                lambda pipe: pipe.set(key, data, px=left_ms) if news.state == "open" else pipe.delete(key),
            )
            self._metrics.news.labels("published").inc()
        except Away:
            # Tried again at the next tick, unless it has been overtaken by then.
            self._outbox.setdefault(service, transition)
            raise

    def _news(self, service: str, transition: Transition) -> News:
        snapshot = self._client.breaker(service).snapshot()
        closed = transition.state == "closed"
        open_s = self._client.breaker(service).settings.open_s
        return News(
            id=self._id(service, transition.number),
            origin=self.instance,
            service=service,
            state="closed" if closed else "open",
            who="local",
            at_ms=int(transition.at * 1000),
            for_ms=_ms(ORDER_S if closed else open_s),
            of=tuple(self._trips(service, snapshot, before=transition.number)) if closed else (),
            reason=transition.reason,
        )

    def _id(self, service: str, number: int) -> str:
        return f"{self._prefix}{service}/{number}"

    def _trips(self, service: str, snapshot: BreakerSnapshot, before: int) -> list[str]:
        """The trips and orders, ours and others', by which the breaker was opened since it was closed, newest first."""
        ids = list(self._joined.get(service, ()))
        for each in reversed([each for each in snapshot.transitions if each.number < before]):
            if each.state == "closed":
                break
            if each.state == "open":
                ids.append(each.ref or self._id(service, each.number))
        return ids[: shapes.MAX_REFS]

    def _learn(self) -> None:
        """Read what holds for services that this process has not asked about yet: all, after each subscription."""
        known = self._known()
        self._learned &= known
        new = sorted(known - self._learned)
        for at in range(0, len(new), _READ_AT_ONCE):
            names = new[at : at + _READ_AT_ONCE]
            trips = [shapes.trip_key(self.group, name) for name in names]
            hands = [shapes.hand_key(self.group, name) for name in names]
            found = self._line.read([*trips, *hands], shapes.MAX_NEWS_BYTES)
            self._learned.update(names)
            for number, data in enumerate(found):
                if data is not None:
                    self._take(data, "local" if number < len(names) else "hand")

    def _known(self) -> set[str]:
        return {name for name in self._view.snapshot().services if not name.startswith(GATEWAY)}

    def knows(self, service: str) -> bool:
        """Whether there is a service of this name that a gateway may call."""
        return service in self._known() or service in self._client.breakers()

    # -- listening

    def _listen(self) -> None:
        orders = shapes.orders_channel(self.group)
        self._line.follow(
            [shapes.trips_channel(self.group), orders],
            stopped=self._stopped,
            begun=self._begun,
            heard=lambda channel, data: self._take(data, "hand" if channel == orders else "local"),
        )

    def _begun(self) -> None:
        self._learned = set()
        self._wake.set()

    def _take(self, data: bytes, who: Literal["local", "hand"]) -> None:
        """Obey, believe or ignore what was found or heard; `who` may say such things there."""
        news = shapes.read(News, data, shapes.MAX_NEWS_BYTES)
        if news is None or news.who != who or not self.knows(news.service):
            self._metrics.news.labels("ignored").inc()
            return
        if news.id.startswith(self._prefix):
            return
        with self._lock:
            if news.id in self._heard:
                return
            self._heard[news.id] = None
            while len(self._heard) > _MAX_HEARD:
                del self._heard[next(iter(self._heard))]
            if news.left_s(self._clock.time()) <= 0:
                taken = False
            elif who == "hand":
                taken = self._obey(news)
            else:
                taken = self._believe(news)
        self._metrics.news.labels("taken" if taken else "ignored").inc()

    def _believe(self, news: News) -> bool:
        act = self._join if news.state == "open" else self._leave
        # What changes while it is decided is decided again.
        return any(act(news, self._client.breaker(news.service).snapshot()) for _ in range(3))

    def _join(self, news: News, seen: BreakerSnapshot) -> bool:
        """Another process has tripped: open too, and leave it to that one to try."""
        breaker = self._client.breaker(news.service)
        closed_at = max((each.at for each in seen.transitions if each.state == "closed"), default=0.0)
        if seen.held or news.state != "open" or news.at_ms < int(closed_at * 1000):
            return False
        open_s = breaker.settings.open_s
        wait_s = min(news.left_s(self._clock.time()), open_s) + open_s
        if seen.state != "open":
            self._joined.pop(news.service, None)
            reason = f"{news.origin}: {news.reason}"
            return breaker.open(wait_s, who="shared", reason=reason, ref=news.id, seen=seen.number)
        self._joined.setdefault(news.service, deque(maxlen=shapes.MAX_REFS)).appendleft(news.id)
        ours = seen.transitions[-1].who == "local"
        if ours and self.instance < news.origin:
            return True  # it waits for us
        return breaker.prolong(wait_s, seen=seen.number)

    def _leave(self, news: News, seen: BreakerSnapshot) -> bool:
        """Another process has found it well again."""
        if news.state != "closed" or seen.state == "closed":
            return False
        if seen.held and seen.transitions[-1].ref not in news.of:
            return False
        if not set(news.of) & set(self._trips(news.service, seen, before=seen.number + 1)):
            return False
        reason = f"{news.origin}: {news.reason}"
        return self._client.breaker(news.service).close(
            who="shared", reason=reason, ref=news.id, seen=seen.number
        )

    # -- orders

    def order(
        self, group: Domain, service: str, state: State, for_s: float, reason: str, request_id: str = ""
    ) -> Outcome:
        """Set a breaker in all processes of a group, whichever this one's is, and wait a moment for them to say so.

        `for_s` is for `open`. Without Redis it reaches this process alone, if it is of that group.
        """
        members = {
            id_ for id_, picture in self.pictures.members([group])[0][group].items() if picture is not None
        }
        with self._lock:
            self._orders += 1
            news = News(
                id=f"{self._prefix}order/{self._orders}",
                origin=self.instance,
                service=service,
                state=state,
                who="hand",
                at_ms=int(self._clock.time() * 1000),
                for_ms=_ms(for_s if state == "open" else ORDER_S),
                reason=reason,
                request_id=request_id,
                first=min(members, default=""),
            )
            if group == self.group:
                self._obey(news)
        shared = self._pass_on(group, news)
        return self._answers(group, news, shared)

    def _pass_on(self, group: Domain, news: News) -> bool:
        key, data = shapes.hand_key(group, news.service), news.model_dump_json().encode()
        try:
            self._line.write(
                lambda pipe: (
                    pipe.set(key, data, px=news.for_ms) if news.state == "open" else pipe.delete(key)
                ),
                lambda pipe: pipe.publish(shapes.orders_channel(group), data),
            )
        except Away:
            return False
        return True

    def _answers(self, group: Domain, news: News, shared: bool) -> Outcome:
        until = self._clock.monotonic() + ANSWER_S
        while True:
            members = self.pictures.members([group])[0][group]
            taken = {id_ for id_, picture in members.items() if picture and news.id in picture.obeyed}
            missing = set(members) - taken
            if not shared or not missing or self._clock.monotonic() >= until:
                return Outcome(news.id, sorted(taken), sorted(missing), shared)
            self._clock.sleep(_POLL_S)

    def _obey(self, news: News) -> bool:
        breaker = self._client.breaker(news.service)
        if news.state == "open":
            wait_s = news.left_s(self._clock.time())
            if news.first not in ("", self.instance):
                wait_s += breaker.settings.open_s
            breaker.open(wait_s, who="hand", reason=news.reason, ref=news.id)
        elif news.state == "half-open":
            breaker.half_open(who="hand", reason=news.reason, ref=news.id)
        else:
            breaker.close(who="hand", reason=news.reason, ref=news.id)
        self.pictures.obeyed.append(news.id)
        log.info(
            "breaker set by hand",
            upstream=news.service,
            state=news.state,
            order=news.id,
            ordered_at=news.origin,
            ordered_by_request=news.request_id,
            reason=news.reason,
        )
        self._wake.set()
        return True


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
