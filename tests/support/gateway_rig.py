"""Real gateways on a real Consul (and Redis), asked as the edge asks them, in front of upstreams that a test scripts.

    with gateway_rig() as rig, rig.service(ok, dead) as pears:
        answer = rig.ask("GET", f"{pears.path}/1", service=pears)
        assert answer.status == 200 and len(pears.requests) == 1

Servers are started once for a module; every service has a name of its own, so that tests do not disturb each other.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually
from tests.support.recorder import refusing_port
from tests.support.scripted import Handler, Seen, Upstream, ok, upstream
from tests.support.servers import ConsulServer, Process, RedisServer, consul, free_port, redis
from tests.support.signer import Signer, signer

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0
ASK_S = 20.0
Behave = Callable[[Handler], None]


def dead(handler: Handler) -> None:
    """In place of a behaviour, and never called: an instance that is registered and refuses connections."""


@dataclass
class Answer:
    """A whole answer; header names in lower case, of a repeated one the last value."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Service:
    """A service of scripted instances. `path` is the prefix that its route holds."""

    name: str
    path: str
    meta: dict[str, str]
    upstreams: list[Upstream] = field(default_factory=list)

    @property
    def requests(self) -> list[Seen]:
        """What reached any of the instances, by instance."""
        return [seen for each in self.upstreams for seen in each.requests]

    def instance_id(self, number: int) -> str:
        return f"{self.name}-{number}"


@dataclass
class Gateway:
    """One gateway process."""

    id: str
    domain: str
    port: int
    process: Process

    def start(self) -> None:
        """Start it (again) on the same port, and wait until it may take traffic."""
        self.process.start()
        self.wait()

    def wait(self) -> None:
        """Until it may take traffic."""

        def ready_or_ended() -> bool:
            return not self.process.running or self._ready()

        eventually(ready_or_ended, START_S, every_s=0.05)
        self.process.must_run()

    def _ready(self) -> bool:
        return exchange(self.port, "GET", "/health/ready", {}).status == 200

    def most_memory(self, *, reset: bool = False) -> int:
        """The most bytes that its master or a worker has held; `reset` starts again from what they hold now."""
        master = self.process.pid
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        peaks = []
        for pid in (master, *children):
            if reset:
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            status = Path(f"/proc/{pid}/status").read_text()
            peaks += [int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line]
        return max(peaks)

    @property
    def log_text(self) -> str:
        return self.process.log.read_text(errors="replace")


class Rig:
    """What `gateway_rig` started. Thread-safe where it asks; services are made on one thread."""

    def __init__(
        self, consul: ConsulServer, redis: RedisServer | None, signer: Signer, gateways: list[Gateway]
    ) -> None:
        self.consul = consul
        self.redis = redis
        self.signer = signer
        self.gateways = gateways
        self._numbers = itertools.count(1)

    # -- services

    @contextlib.contextmanager
    def service(
        self, *behaviours: Behave, name: str | None = None, path: str | None = None, **meta: str
    ) -> Iterator[Service]:
        """A service with one instance for each behaviour (dead: one that refuses), known to every gateway.

        `meta` are the contract's keys without `edge-`, `_` for `-`: `auth="jwt"`. The lane is `gateway`.
        """
        name = name or f"pears-{uuid.uuid4().hex[:8]}"
        path = path or f"/api/{name}"
        keys = {"path": path, "lane": "gateway", "auth": "public"}
        keys |= {"domain": self.gateways[0].domain, **meta}
        made = Service(name, path, {f"edge-{key.replace('_', '-')}": value for key, value in keys.items()})
        with contextlib.ExitStack() as stack:
            for behave in behaviours:
                self._instance(stack, made, behave)
            self.settle()
            yield made

    def _instance(self, stack: contextlib.ExitStack, service: Service, behave: Behave) -> None:
        if behave is dead:
            server = Upstream(stack.enter_context(refusing_port()), behave)
        else:
            server = stack.enter_context(upstream(behave))
            server.service = service.name
        id_ = service.instance_id(len(service.upstreams))
        service.upstreams.append(server)
        stack.callback(self.deregister, id_)
        self.register(service.name, id_, server.port, service.meta)

    def register(self, service: str, id_: str, port: int, meta: Mapping[str, str]) -> None:
        """Enter an instance in Consul with a check that passes until `mark` says otherwise."""
        check = {"CheckID": f"service:{id_}", "Name": "alive", "TTL": "3600s", "Status": "passing"}
        entry = {"ID": id_, "Name": service, "Address": "127.0.0.1", "Port": port, "Meta": dict(meta)}
        self.consul.call("PUT", "/v1/agent/service/register", {**entry, "Check": check})

    def mark(self, id_: str, status: str) -> None:
        """Set an instance's check: `passing`, `warning`, `critical`. See `settle`."""
        self.consul.call("PUT", f"/v1/agent/check/update/service:{id_}", {"Status": status})

    def deregister(self, id_: str) -> None:
        """Take an instance out of Consul; none there is well as well."""
        with contextlib.suppress(OSError):
            self.consul.call("PUT", f"/v1/agent/service/deregister/{id_}")

    def settle(self, within_s: float = 10.0) -> None:
        """Until every gateway that runs has seen all that stands in Consul now.

        Shown by services that are registered after it, and asked for; no other one is asked. A view reads a new name
        first and then what else has changed: by the time that it has a second new name, all is read.
        """
        with upstream(ok) as canary:
            for _ in range(2):
                for gateway in self.gateways:
                    if gateway.process.running:
                        self._sees(gateway, canary, within_s)

    def _sees(self, gateway: Gateway, canary: Upstream, within_s: float) -> None:
        name = canary.service = f"canary-{uuid.uuid4().hex[:8]}"
        keys = {"path": f"/api/{name}", "lane": "gateway", "auth": "public", "domain": gateway.domain}
        self.register(name, name, canary.port, {f"edge-{key}": value for key, value in keys.items()})
        sent = self.headers(name)
        try:
            eventually(
                lambda: exchange(gateway.port, "GET", f"/api/{name}", sent).status == 200, within_s, 0.01
            )
        finally:
            self.deregister(name)

    # -- asking

    def headers(
        self, service: Service | str | None = None, client: str | None = None, **more: str
    ) -> dict[str, str]:
        """What the edge sets on a request, and `more` with `_` for `-`. Without `client` every request has its own address."""
        number = next(self._numbers)
        name = service.name if isinstance(service, Service) else service
        sent = {
            "X-Request-ID": uuid.uuid4().hex,
            "X-Forwarded-For": client or f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
            "X-Forwarded-Proto": "http",
            "X-Forwarded-Host": "edge.test",
        }
        if name:
            sent["X-Edge-Route"] = name
        return sent | {key.replace("_", "-"): value for key, value in more.items()}

    def ask(self, method: str, path: str, **options: Any) -> Answer:
        """The whole answer to one request; options as in `open`.

        Raises OSError, and http.client.HTTPException for an answer that is broken off (IncompleteRead) or missing.
        """
        with self.open(method, path, **options) as response:
            return _whole(response)

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        service: Service | str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
        gateway: int = 0,
        timeout_s: float = ASK_S,
        client: str | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """One request on a connection of its own, as the edge would send it.

        Gives the answer once its head is there, for reading bit by bit (`read1`); leaving closes the connection.
        """
        sent = self.headers(service, client) | dict(headers or {})
        connection = http.client.HTTPConnection("127.0.0.1", self.gateways[gateway].port, timeout=timeout_s)
        try:
            connection.request(method, path, body=body, headers=sent)
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()


def exchange(
    port: int, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
) -> Answer:
    """One request with just these headers, and its whole answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_S)
    try:
        connection.request(method, path, body=body, headers=dict(headers))
        return _whole(connection.getresponse())
    finally:
        connection.close()


def _whole(response: http.client.HTTPResponse) -> Answer:
    data = response.read()
    return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, data)


@contextlib.contextmanager
def gateway_rig(
    *domains: str, with_redis: bool = False, env: Mapping[str, str] | None = None
) -> Iterator[Rig]:
    """Consul, Redis if asked for, and one gateway for each domain named (`business`): naming one twice starts two instances.

    `env` goes to all of them.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="rig-", ignore_cleanup_errors=True))
        )
        catalog = stack.enter_context(consul(folder))
        cache = stack.enter_context(redis()) if with_redis else None
        issuer = stack.enter_context(signer())
        variables = {
            "CONSUL_HTTP_ADDR": catalog.address,
            "AUTH_JWKS_URL": issuer.url,
            "DATA_DIR": str(folder),
            "DRAIN_DELAY_S": "0.1",
            **({"REDIS_CACHE_URL": cache.url} if cache else {}),
            **(env or {}),
        }
        rig = Rig(catalog, cache, issuer, [])
        for domain in domains or ("business",):
            rig.gateways.append(stack.enter_context(gateway_of(domain, folder, variables)))
        for gateway in rig.gateways:
            gateway.wait()
        yield rig


@contextlib.contextmanager
def gateway_of(domain: str, folder: Path, variables: Mapping[str, str]) -> Iterator[Gateway]:
    """A gateway that has been started, and may not be ready yet."""
    port = free_port()
    id_ = f"gateway-{domain}-{port}"
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("CONSUL_", "REDIS_", "AUTH_", "SERVICE_", "GATEWAY_"))
    }
    own = {"PYTHONPATH": str(ROOT), "PORT": str(port), "INSTANCE_ID": id_, "GATEWAY_DOMAIN": domain}
    process = Process(
        [sys.executable, "-m", "gateway"], folder / f"{id_}.log", env={**clean, **own, **variables}
    )
    started = Gateway(id_, domain, port, process)
    try:
        process.start()
        yield started
    finally:
        # How a gateway leaves has a test of its own; elsewhere a drain would only take time.
        process.kill()


def metric(rig: Rig, name: str, labels: Mapping[str, str], gateway: int = 0) -> float:
    """The sum of the samples of a metric that carry these labels, at one gateway."""
    text = exchange(rig.gateways[gateway].port, "GET", "/metrics", {}).body.decode()
    total = 0.0
    for line in text.splitlines():
        head, _, value = line.rpartition(" ")
        if head.partition("{")[0] == name and all(f'{key}="{val}"' in head for key, val in labels.items()):
            total += float(value)
    return total
