"""What a fleet does alike whatever it is made of: questions to Consul, Redis and the edge, and what counts as healthy."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from stack.servers.vault import REDIS_OPERATOR
from tests.support.eventually import eventually
from tests.support.fleet import EdgeServer, Member, RedisName
from tests.support.servers import ask_consul


class FleetBase(ABC):
    """See `tests.support.fleet.Fleet` for the promises. What is abstract here is where things are found."""

    @abstractmethod
    def services(self) -> Mapping[str, int]: ...

    @abstractmethod
    def instances(self, service: str) -> list[Member]: ...

    @abstractmethod
    def _consul_address(self) -> str:
        """`host:port`."""

    @abstractmethod
    def _consul_master(self) -> str:
        """The token with all rights."""

    @abstractmethod
    def _redis_address(self, name: RedisName) -> tuple[str, int]: ...

    @abstractmethod
    def _redis_password(self) -> str:
        """The operator's."""

    @abstractmethod
    def _stats_csv(self, service: str) -> str:
        """`show stat` with at least the servers of the service's backend in it."""

    @abstractmethod
    def _edge_log_text(self) -> str: ...

    @abstractmethod
    def _servers_run(self) -> bool:
        """Whether everything but the instances of services runs."""

    # -- Redis

    def redis(self, name: RedisName, *words: str | int) -> Any:
        host, port = self._redis_address(name)
        with Redis(
            host=host,
            port=port,
            username=REDIS_OPERATOR,
            password=self._redis_password(),
            socket_timeout=1,
            socket_connect_timeout=1,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        ) as client:
            return client.execute_command(*words)

    @contextlib.contextmanager
    def redis_config(self, name: RedisName, **values: str) -> Iterator[None]:
        wanted = {key.replace("_", "-"): value for key, value in values.items()}
        before = {key: str(dict(self.redis(name, "CONFIG GET", key))[key]) for key in wanted}
        try:
            for key, value in wanted.items():
                self.redis(name, "CONFIG SET", key, value)
            yield
        finally:
            for key, value in reversed(before.items()):
                self.redis(name, "CONFIG SET", key, value)

    @contextlib.contextmanager
    def read_only_redis(self, name: RedisName) -> Iterator[None]:
        self.redis(name, "REPLICAOF", "127.0.0.1", 1)
        try:
            yield
        finally:
            self.redis(name, "REPLICAOF", "NO", "ONE")

    # -- Consul and the edge

    def consul(self, method: str, path: str, body: object = None, *, token: str | None = None) -> Any:
        return ask_consul(self._consul_address(), method, path, body, token=token or self._consul_master())

    def edge_servers(self, service: str) -> list[EdgeServer]:
        text = self._stats_csv(service)
        return [
            EdgeServer(
                backend=row["pxname"],
                # An instance that came back at another address stands as "id:hash" beside its former server.
                name=row["svname"].partition(":")[0],
                status=row["status"],
                weight=int(row["weight"] or 0),
                errors=sum(int(row[key] or 0) for key in ("econ", "eresp", "wretr", "wredis")),
                sessions=int(row["scur"] or 0),
            )
            for row in csv.DictReader(io.StringIO(text.removeprefix("# ")))
            if row["pxname"] == f"svc_{service}" and row["svname"] not in {"FRONTEND", "BACKEND"}
        ]

    def edge_log(self) -> list[dict[str, Any]]:
        lines = []
        for line in self._edge_log_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line[max(line.find("{"), 0) :]))
        return lines

    # -- health

    def healthy(self) -> bool:
        """Whether every service has its instances, all passing and all up at the edge, and nothing else is there."""
        return self._servers_run() and all(self._whole(*one) for one in self.services().items())

    def _whole(self, service: str, count: int) -> bool:
        members = self.instances(service)
        if not len([member for member in members if member.pid]) == len(members) == count:
            return False
        entries = self.consul("GET", f"/v1/health/service/{service}?passing=1")
        servers = self.edge_servers(service)
        passing = {entry["Service"]["ID"] for entry in entries}
        up = {server.name for server in servers if server.up}
        return len(servers) == count and passing == up == {member.id for member in members}

    def wait_healthy(self, within_s: float = 60.0) -> None:
        eventually(self.healthy, within_s, every_s=0.05)

    def _deregister_strangers(self, service: str) -> None:
        ours = {member.id for member in self.instances(service)}
        for entry in self.consul("GET", f"/v1/catalog/service/{service}"):
            if entry["ServiceID"] not in ours:
                self.consul("PUT", f"/v1/agent/service/deregister/{entry['ServiceID']}")
