"""The breakers of a gateway's process, in this one: its client and its sharing, over a real Redis."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from redis import Redis

from discovery import BreakerOpen, BreakerSettings, ClientSettings, Instance, ServiceClient, StaticView
from gateway.breakers.admin import BreakerObserver
from gateway.breakers.news import orders_channel, trips_channel
from gateway.breakers.sync import Sharing
from gateway.metrics import BreakerMetrics
from gateway.redis_link import TIMEOUT_S, RedisLink
from services.kit.redis_client import connect
from services.kit.telemetry.metrics import Metrics
from tests.support.eventually import eventually
from tests.support.servers import RedisServer

OPEN_S = 1.0
SETTINGS = BreakerSettings(window_s=10, min_calls=4, rate=0.5, open_s=OPEN_S, trials=3, successes=2)
names = itertools.count(1)


class Process:
    """A gateway's client and its sharing, as in a process of its own."""

    def __init__(
        self,
        server: RedisServer | None,
        service: str,
        *,
        group: str = "business",
        name: str = "",
        username: str | None = None,
        settings: BreakerSettings = SETTINGS,
        members: tuple[str, ...] = (),
    ) -> None:
        self.service = service
        self.name = name or f"gateway-{group}-{next(names):04}"
        self.metrics = BreakerMetrics(CollectorRegistry())
        observer = BreakerObserver(Metrics(f"gateway-{group}"), self.metrics)
        gateways = [Instance(f"gateway-{group}", each, "node-1", "127.0.0.1", 1) for each in members]
        self.view = StaticView([Instance(service, f"{service}-1", "node-1", "127.0.0.1", 1), *gateways])
        self.client = ServiceClient(self.view, settings=ClientSettings(breaker=settings), observer=observer)
        url = f"redis://127.0.0.1:{server.port}/0" if server else None
        password = "secret" if username else None
        link = RedisLink(connect(url, password, username=username, timeout_s=TIMEOUT_S, connections=8))
        self.sharing = Sharing(
            self.client,
            self.view,
            group=group,
            instance=self.name,
            link=link,
            metrics=self.metrics,  # type: ignore[arg-type]
        )
        observer.on_change = self.sharing.changed
        self.sharing.start()

    @property
    def breaker(self) -> Any:
        return self.client.breaker(self.service)

    @property
    def state(self) -> str:
        return self.client.breaker_state(self.service)

    def hears(self) -> bool:
        """Whether it hears of the others, and has learned what there was to learn."""
        return self.sharing.hearing and self.service in self.sharing.learned

    def fail(self, times: int = SETTINGS.min_calls) -> None:
        for _ in range(times):
            self.breaker.enter().failed("status 503")

    def works(self) -> bool:
        """One call that works, if it may be made."""
        try:
            self.breaker.enter().succeeded()
        except BreakerOpen:
            return False
        return True

    def history(self) -> list[tuple[str, str]]:
        return [(each.state, each.who) for each in self.breaker.status().transitions]


@contextlib.contextmanager
def starter(server: RedisServer) -> Iterator[Callable[..., Process]]:
    """Starts processes that share a service of their own, on `server` or `on` another one, and waits until they hear."""
    started: list[Process] = []
    service = f"pears-{next(names)}"

    def start(*, on: RedisServer | None = server, wait: bool = True, **options: Any) -> Process:
        process = Process(on, options.pop("service", service), **options)
        started.append(process)
        if wait:
            eventually(process.hears, 5)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.sharing.stop()


def news(service: Any, **changes: Any) -> dict[str, Any]:
    """A trip as another process of the group would tell it."""
    told = {
        "id": f"stranger/1/{next(names)}",
        "origin": "stranger",
        "service": service,
        "state": "open",
        "who": "local",
        "at_ms": int(time.time() * 1000),
        "for_ms": 1000,
        "of": [],
        "reason": "4 of 4 calls failed",
        "first": "",
    }
    return told | changes


def tell(raw: Redis, told: dict[str, Any], group: str = "business") -> None:
    channel = trips_channel(group) if told["who"] == "local" else orders_channel(group)
    assert raw.publish(channel, json.dumps(told)) >= 1, "no process hears"


def ignored(process: Process) -> float:
    return process.metrics.news.labels("ignored")._value.get()


def try_all(processes: list[Process], seconds: float, outcome: Callable[[Any], None]) -> list[str]:
    """Calls without pause through all processes, and whose were let through."""
    passed = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for each in processes:
            with contextlib.suppress(BreakerOpen):
                permit = each.breaker.enter()
                passed.append(each.name)
                outcome(permit)
        time.sleep(0.002)
    return passed
