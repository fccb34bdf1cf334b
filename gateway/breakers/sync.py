"""The breakers of one process and of the rest of its group: what is published, which news counts, and what an operator orders.

Every process breaks on its own. One that trips publishes it, the others open too, and are quiet: only what a process found
out itself is published, so that nothing echoes. The process that tripped tries again when its time is over; those that only
heard of it wait for twice that time, and open or close with its verdict. If two trip at once, the one whose name comes first
tries. So the trials are those of one process; if that one dies or loses Redis, the others try by themselves in the end.

News that is older than the last closing here, has run out, or was heard before changes nothing. Clocks of one group should agree
within a second: on a machine whose clock is behind, news of others holds for longer by that much, never for longer than it may.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import structlog
from cachetools import FIFOCache

from discovery.calls.client import ServiceClient
from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul.static import Reading
from discovery.loop import Loop
from discovery.model import Domain
from discovery.resilience.breaker import BreakerStatus, State, Transition
from gateway.breakers import news as shapes
from gateway.breakers.news import News, Picture
from gateway.metrics import BreakerMetrics
from gateway.redis_link import Away, RedisLink
from gateway.routes import is_gateway

log = structlog.get_logger(__name__)

TICK_S = 1.0
# A subscription that was lost is made anew after about so long.
RETRY_S = 0.5
# How long an order to close or try holds for processes that hear of it late, and how long its sender waits for answers.
ORDER_S = 10.0
ANSWER_S = 1.0
# A process that has published no picture for so long is shown as silent.
PICTURE_S = 3.0
_POLL_S = 0.02
_READ_AT_ONCE = 200
_MAX_HEARD = 512

Members = dict[Domain, dict[str, Picture | None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Which instances carried out an order, and which of the catalog did not confirm it in time. `shared`: whether Redis took it."""

    id: str
    taken_by: list[str]
    missing: list[str]
    shared: bool


class Sharing:
    """Shares the breakers of `client` within its group. Thread-safe; `start` it in the worker, once the instance has its name.

    Redis is only touched by its own two threads, and by the views of operators; never by a call.
    """

    def __init__(
        self,
        client: ServiceClient,
        view: Reading,
        *,
        group: Domain,
        instance: str,
        link: RedisLink,
        metrics: BreakerMetrics,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._client = client
        self._view = view
        self.group = group
        self.instance = instance
        self._link = link
        self._metrics = metrics
        self._clock = clock
        # A name for this run: a process that comes back is not the one whose news it finds.
        self._prefix = f"{instance}/{secrets.token_hex(4)}/"
        self._lock = threading.Lock()
        # Ids, in the order of their coming.
        self._heard: FIFOCache[str, None] = FIFOCache(_MAX_HEARD)
        self._joined: dict[str, deque[str]] = {}
        self._orders = 0
        self._obeyed: deque[str] = deque(maxlen=32)
        # The last change of each service that is to be published; bounded by the number of services.
        self._outbox: dict[str, Transition] = {}
        self.learned: set[str] = set()
        self._publisher = Loop("breakers", self._publish)
        self._listener = Loop("breaker-listener", self._listen)

    def start(self) -> None:
        """Begin to publish and to listen. Does nothing without Redis."""
        if self._link.exists:
            self._publisher.start()
            self._listener.start()

    def stop(self) -> None:
        self._listener.stop()
        self._publisher.stop()

    @property
    def hearing(self) -> bool:
        """Whether this process hears of the others now."""
        return self._link.hearing

    def changed(self, service: str, transition: Transition) -> None:
        """Call it with every change of a breaker of the client; within the breaker's lock, costs microseconds."""
        if transition.who != "shared" and transition.state != "half-open":
            self._outbox[service] = transition
        self._publisher.hurry()

    def _publish(self) -> float:
        try:
            for service in list(self._outbox):
                self._send(service)
            self._learn()
            self._show()
        except Away:
            pass  # tried again at the next tick
        return TICK_S

    def _send(self, service: str) -> None:
        transition = self._outbox.pop(service, None)
        if transition is None:
            return
        key = shapes.trip_key(self.group, service)
        news = self._news(service, transition)
        left_ms = int(news.left_s(self._clock.time()) * 1000)
        try:
            if transition.who == "hand":  # published by the process that was asked for it
                self._link.write(lambda pipe: pipe.delete(key))
            elif left_ms > 0:
                data = news.model_dump_json().encode()
                self._link.write(
                    lambda pipe: (
                        pipe.publish(shapes.trips_channel(self.group), data),
                        pipe.set(key, data, px=left_ms) if news.state == "open" else pipe.delete(key),
                    )
                )
                self._metrics.news.labels("published").inc()
        except Away:
            # Unless it has been overtaken by then.
            self._outbox.setdefault(service, transition)
            raise

    def _news(self, service: str, transition: Transition) -> News:
        breaker = self._client.breaker(service)
        closed = transition.state == "closed"
        trips = self._trips(service, breaker.status(), before=transition.number) if closed else []
        return News(
            id=self._id(service, transition.number),
            origin=self.instance,
            service=service,
            state="closed" if closed else "open",
            who="local",
            at_ms=int(transition.at * 1000),
            for_ms=_ms(ORDER_S if closed else breaker.settings.open_s),
            of=tuple(trips),
            reason=transition.reason,
        )

    def _id(self, service: str, number: int) -> str:
        return f"{self._prefix}{service}/{number}"

    def _trips(self, service: str, status: BreakerStatus, before: int) -> list[str]:
        """The trips and orders, ours and others', by which the breaker was opened since it was closed, newest first."""
        ids = list(self._joined.get(service, ()))
        for each in reversed([each for each in status.transitions if each.number < before]):
            if each.state == "closed":
                break
            if each.state == "open":
                ids.append(each.ref or self._id(service, each.number))
        return ids[: shapes.MAX_REFS]

    def _learn(self) -> None:
        """Read what holds for services that this process has not asked about yet: all, after each subscription."""
        known = self._known()
        self.learned &= known
        new = sorted(known - self.learned)
        for at in range(0, len(new), _READ_AT_ONCE):
            names = new[at : at + _READ_AT_ONCE]
            trips = [shapes.trip_key(self.group, name) for name in names]
            hands = [shapes.hand_key(self.group, name) for name in names]
            found = self._link.read([*trips, *hands], shapes.MAX_NEWS_BYTES)
            self.learned.update(names)
            for number, data in enumerate(found):
                if data is not None:
                    self._take(data, "local" if number < len(names) else "hand")

    def _known(self) -> set[str]:
        return {name for name in self._view.snapshot().services if not is_gateway(name)}

    def knows(self, service: str) -> bool:
        """Whether there is a service of this name that a gateway may call."""
        return service in self._known() or service in self._client.breakers()

    def _listen(self) -> float:
        orders = shapes.orders_channel(self.group)

        def learn_all() -> None:
            self.learned = set()
            self._publisher.hurry()

        self._link.follow(
            shapes.trips_channel(self.group),
            orders,
            until=lambda: self._listener.stopped,
            begun=learn_all,
            heard=lambda channel, data: self._take(data, "hand" if channel == orders else "local"),
        )
        # Not in step with the other processes.
        return RETRY_S * (0.5 + self._clock.random())

    def _take(self, data: bytes, who: Literal["local", "hand"]) -> None:
        """Obey, believe or ignore what was found or heard, where only `who` may say such things."""
        news = shapes.read(News, data, shapes.MAX_NEWS_BYTES)
        if news is None or news.who != who or not self.knows(news.service):
            self._metrics.news.labels("ignored").inc()
            return
        with self._lock:
            if news.id.startswith(self._prefix) or news.id in self._heard:
                return
            self._heard[news.id] = None
            act = self._obey if who == "hand" else self._believe
            taken = news.left_s(self._clock.time()) > 0 and act(news)
        self._metrics.news.labels("taken" if taken else "ignored").inc()

    def _believe(self, news: News) -> bool:
        act = self._join if news.state == "open" else self._leave
        # What changes while it is decided is decided again.
        return any(act(news, self._client.breaker(news.service).status()) for _ in range(3))

    def _join(self, news: News, seen: BreakerStatus) -> bool:
        """Another process has tripped: open too, and leave it to that one to try."""
        breaker = self._client.breaker(news.service)
        closed_at = max((each.at for each in seen.transitions if each.state == "closed"), default=0.0)
        if seen.held or news.at_ms < int(closed_at * 1000):
            return False
        open_s = breaker.settings.open_s
        wait_s = min(news.left_s(self._clock.time()), open_s) + open_s
        if seen.state != "open":
            self._joined.pop(news.service, None)
            reason = f"{news.origin}: {news.reason}"
            return breaker.change("open", wait_s, who="shared", reason=reason, ref=news.id, seen=seen.number)
        self._joined.setdefault(news.service, deque(maxlen=shapes.MAX_REFS)).appendleft(news.id)
        ours = seen.transitions[-1].who == "local"
        if ours and self.instance < news.origin:
            return True  # it waits for us
        return breaker.prolong(wait_s, seen=seen.number)

    def _leave(self, news: News, seen: BreakerStatus) -> bool:
        """Another process has found it well again."""
        if news.state != "closed" or seen.state == "closed":
            return False
        if seen.held and seen.transitions[-1].ref not in news.of:
            return False
        if not set(news.of) & set(self._trips(news.service, seen, before=seen.number + 1)):
            return False
        reason = f"{news.origin}: {news.reason}"
        breaker = self._client.breaker(news.service)
        return breaker.change("closed", who="shared", reason=reason, ref=news.id, seen=seen.number)

    def order(
        self, group: Domain, service: str, state: State, for_s: float, reason: str, request_id: str = ""
    ) -> Outcome:
        """Set a breaker in all processes of a group, this one's or another, and wait a moment for them to confirm it.

        `for_s` is for `open`. Without Redis it reaches this process alone, if it is of that group.
        """
        members = self.members([group])[0][group]
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
                first=min((id_ for id_, picture in members.items() if picture), default=""),
            )
            if group == self.group:
                self._obey(news)
        return self._answers(group, news, shared=self._pass_on(group, news))

    def _pass_on(self, group: Domain, news: News) -> bool:
        key, data = shapes.hand_key(group, news.service), news.model_dump_json().encode()
        try:
            self._link.write(
                lambda pipe: (
                    pipe.set(key, data, px=news.for_ms) if news.state == "open" else pipe.delete(key),
                    pipe.publish(shapes.orders_channel(group), data),
                )
            )
        except Away:
            return False
        return True

    def _answers(self, group: Domain, news: News, *, shared: bool) -> Outcome:
        until = self._clock.monotonic() + ANSWER_S
        while True:
            members = self.members([group])[0][group]
            taken = {id_ for id_, picture in members.items() if picture and news.id in picture.obeyed}
            missing = set(members) - taken
            if not shared or not missing or self._clock.monotonic() >= until:
                return Outcome(news.id, sorted(taken), sorted(missing), shared)
            self._clock.sleep(_POLL_S)

    def _obey(self, news: News) -> bool:
        breaker = self._client.breaker(news.service)
        wait_s = news.left_s(self._clock.time())
        if news.first not in ("", self.instance):
            wait_s += breaker.settings.open_s
        breaker.change(news.state, wait_s, who="hand", reason=news.reason, ref=news.id)
        self._obeyed.append(news.id)
        log.info(
            "breaker set by hand",
            upstream=news.service,
            state=news.state,
            order=news.id,
            ordered_at=news.origin,
            ordered_by_request=news.request_id,
            reason=news.reason,
        )
        self._publisher.hurry()
        return True

    def picture(self, *, short: bool = False) -> Picture:
        """This process's breakers now; `short`: with one transition each, and without those that never changed.

        A service that has left the catalog is left out, once its breaker is closed.
        """
        known = self._view.snapshot().services
        breakers = {
            service: replace(status, transitions=status.transitions[-1:]) if short else status
            for service, status in self._client.breakers().items()
            if status.state != "closed" or (service in known and (status.number or not short))
        }
        return Picture(
            instance=self.instance,
            group=self.group,
            at=self._clock.time(),
            sharing=self.hearing,
            obeyed=tuple(self._obeyed),
            breakers=breakers,
        )

    def _show(self) -> None:
        """Publish the picture, in less detail where it would be too long to be read. Raises Away."""
        picture = self.picture().model_dump_json().encode()
        if len(picture) > shapes.MAX_PICTURE_BYTES:
            picture = self.picture(short=True).model_dump_json().encode()
        key = shapes.picture_key(self.group, self.instance)
        self._link.write(lambda pipe: pipe.set(key, picture, px=int(PICTURE_S * 1000)))

    def members(self, groups: Iterable[Domain]) -> tuple[Members, bool]:
        """Of each group, its instances in the catalog and the picture that each has published; and whether Redis answered.

        None for an instance that is silent. This process's own picture is always there.
        """
        snapshot = self._view.snapshot()
        found: Members = {
            group: dict.fromkeys(sorted(each.id for each in snapshot.instances(f"gateway-{group}")))
            for group in groups
        }
        # Its own key among them, so that Redis is always asked for something.
        places = [(group, id_) for group, ids in found.items() for id_ in ids] + [(self.group, self.instance)]
        try:
            values = self._link.read(
                [shapes.picture_key(*place) for place in places], shapes.MAX_PICTURE_BYTES
            )
        except Away:
            values = []
        for (group, id_), data in zip(places, values, strict=False):
            picture = shapes.read(Picture, data, shapes.MAX_PICTURE_BYTES)
            if group in found and picture is not None and (picture.instance, picture.group) == (id_, group):
                found[group][id_] = picture
        if self.group in found:
            found[self.group][self.instance] = self.picture()
        return found, bool(values)


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
