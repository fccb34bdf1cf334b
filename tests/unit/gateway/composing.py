"""What the tests of compositions are made of: declarations, upstreams that are functions, and requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
from prometheus_client import CollectorRegistry

from discovery import Instance, StaticView
from gateway.cache import PartPolicy
from gateway.compose import Compositions
from gateway.compose.config import load
from gateway.metrics import GatewayMetrics
from gateway.model import Answer, Incoming
from services.kit.auth.verifier import Identity
from tests.support.incoming import incoming

PAIR = """
[[route]]
name = "pair"
path = "/pair/<id>"
placeholders = { id = "[0-9a-z]+" }
timeout_s = 1.0
parts.left = { service = "lefts", path = "/lefts/<id>", required = true, take = "data" }
parts.right = { service = "rights", path = "/rights/<id>" }
"""


@dataclass
class Reply:
    """What an upstream's answer looks like to its caller."""

    body: bytes = b'{"data":{}}'
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    instance: Instance = field(default_factory=lambda: one("lefts"))
    attempts: int = 1
    complete: bool = True

    @property
    def data(self) -> bytes:
        return self.body


def one(service: str, number: int = 1) -> Instance:
    return Instance(service, f"{service}-{number}", "node", "127.0.0.1", 1000 + number)


Behave = Callable[[dict[str, Any]], Reply]


@dataclass
class Upstreams:
    """`Calls` whose services are functions. `sent` lists the calls with their services, `cut` the services whose calls were cut off."""

    behave: dict[str, Behave]
    p95_s: float | None = None
    budget: int = 1000
    sent: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    @property
    def client(self) -> Upstreams:
        return self

    def latency_s(self, service: str) -> float | None:
        return self.p95_s

    def spend_retry(self, service: str) -> bool:
        self.budget -= 1
        return self.budget >= 0

    def send(self, incoming: Any, method: str, service: str, target: str, **options: Any) -> Any:
        self.sent.append((service, target, options))
        try:
            return self.behave[service](options)
        except Exception:
            raise
        except BaseException:
            self.cut.append(service)
            raise


def answers(body: bytes = b'{"data":{}}', status: int = 200, after_s: float = 0.0, **headers: str) -> Behave:
    def behave(_: dict[str, Any]) -> Reply:
        gevent.sleep(after_s)
        return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})

    return behave


def raises(error: Exception, after_s: float = 0.0) -> Behave:
    def behave(_: dict[str, Any]) -> Reply:
        gevent.sleep(after_s)
        raise error

    return behave


def compositions(
    folder: Path, text: str, upstreams: Upstreams, *, cache: Any = None, there: list[Instance] | None = None
) -> Compositions:
    (folder / "business.toml").write_text(text)
    names = list(upstreams.behave)
    view = StaticView(there if there is not None else [one(name) for name in names])
    metrics = GatewayMetrics(CollectorRegistry())
    return Compositions(
        load("business", folder),
        calls=upstreams,
        view=view,
        cache=cache or Store(),
        metrics=metrics,  # type: ignore[arg-type]
    )


def ask(made: Compositions, request: Incoming | None = None) -> Answer:
    request = request or incoming("/pair/7")
    found = made.find(request)
    assert found is not None
    return found(request)


def said(answer: Answer) -> dict[str, Any]:
    assert isinstance(answer.body, bytes)
    parsed: dict[str, Any] = json.loads(answer.body)
    return parsed


TOKEN = """
[[route]]
name = "mine"
path = "/mine"
auth = "token"
parts.posts = { service = "posts", path = "/posts?author=<subject>" }
"""


@dataclass
class Store:
    """A cache that holds what a test puts in."""

    kept: Answer | None = None
    good: Answer | None = None
    asked: list[tuple[str, str, PartPolicy, Identity | None]] = field(default_factory=list)

    def part(
        self,
        service: str,
        target: str,
        policy: PartPolicy,
        load: Any,
        *,
        identity: Identity | None = None,
        asked: Incoming | None = None,
    ) -> Answer:
        self.asked.append((service, target, policy, identity))
        return self.kept or load().with_headers(("X-Cache", "MISS"))

    def mark(self) -> int:
        return 0

    def unchanged(self, places: Any, since: int, checked: float) -> bool:
        return True

    def last_good(self, incoming: Incoming) -> Answer | None:
        self.asked.append((incoming.service, incoming.target, PartPolicy(ttl_s=0), incoming.identify()))
        return self.good


PUBLIC = {"cache_control": "public, max-age=60"}
