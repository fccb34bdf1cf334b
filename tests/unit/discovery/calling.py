"""What the tests of ServiceClient are made of: clients of a few instances, and how upstreams behave."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

from discovery import ClientSettings, Instance, ServiceClient, StaticView
from tests.support.scripted import Handler, Upstream
from tests.support.servers import free_port


def client(*upstreams: Upstream | Instance, **settings: object) -> ServiceClient:
    instances = [each.instance() if isinstance(each, Upstream) else each for each in upstreams]
    return ServiceClient(StaticView(instances), settings=ClientSettings(**settings))  # type: ignore[arg-type]


def busy(calls: ServiceClient, instance: Instance) -> bool:
    """Whether an attempt on the instance counts as open: an idle one is then preferred to it each time."""
    idle = replace(instance, id=f"{instance.id}-idle")
    balancer = calls.guard.upstream(instance.service).balancer
    return instance not in [balancer.pick([instance, idle], "leastconn") for _ in range(4)]


def dead(name: str = "users-0-dead") -> Instance:
    """An instance at a port where nothing listens. Its id sorts first, so that `first` picks it."""
    return Instance("users", name, "node-1", "127.0.0.1", free_port())


def status(code: int):  # type: ignore[no-untyped-def]
    return lambda handler: handler.answer(code)


def hang(seconds: float):  # type: ignore[no-untyped-def]
    def behave(handler: Handler) -> None:
        time.sleep(seconds)
        with contextlib.suppress(OSError):
            handler.answer()

    return behave
