"""One interface to a running stack for the tests that break it: processes, or containers."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from stack.servers.vault import REDIS_OPERATOR
from tests.support.accounts import says_ready
from tests.support.eventually import eventually
from tests.support.servers import ask_consul

RedisName = Literal["redis-cache", "redis-state"]


@dataclass(frozen=True)
class Member:
    """One instance of the fleet: its id in Consul, where it is, and its process id (0 when it does not run)."""

    service: str
    id: str
    port: int
    pid: int
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class EdgeServer:
    """One server of a backend as HAProxy sees it. `errors` are connects and answers that failed, and retries."""

    name: str
    status: str
    errors: int

    @property
    def up(self) -> bool:
        return self.status.startswith(("UP", "no check"))


class Fleet(ABC):
    """What a resilience test may do to a stack, and ask of it. Every method that waits raises AssertionError when it waits in vain."""

    edge_port: int
    edge_https_port: int
    stats_port: int

    @abstractmethod
    def services(self) -> Mapping[str, int]:
        """Service → how many instances the healthy fleet has of it."""

    @abstractmethod
    def instances(self, service: str) -> list[Member]:
        """Those that Consul knows and the fleet itself runs, by id."""

    @abstractmethod
    def kill(self, member: Member) -> None:
        """SIGKILL; the fleet starts it again by itself."""

    @abstractmethod
    def hang(self, member: Member) -> AbstractContextManager[None]:
        """SIGSTOP to all of its processes for as long as the context lasts."""

    @abstractmethod
    def stop(self, service: str) -> None:
        """Stop every instance of the service: drained, and not started again. Returns when they have ended."""

    @abstractmethod
    def crash(self, service: str) -> None:
        """SIGKILL to every instance of the service at once; they stay away until `start`."""

    @abstractmethod
    def stop_member(self, member: Member) -> None:
        """The same for one."""

    @abstractmethod
    def start(self, service: str) -> None:
        """Start what is stopped of the service; does not wait until it serves."""

    @abstractmethod
    def scale(self, service: str, count: int) -> None:
        """Run that many instances; returns when the processes have been started or have ended."""

    @abstractmethod
    def kill_server(self, name: str) -> None:
        """SIGKILL to Consul, the controller or a Redis server, which stays down until `start_server`."""

    @abstractmethod
    def hang_server(self, name: str) -> AbstractContextManager[None]:
        """SIGSTOP to it for as long as the context lasts: it takes connections, and says nothing."""

    @abstractmethod
    def start_server(self, name: str) -> None:
        """Start it again; does not wait until it answers."""

    @abstractmethod
    def empty_consul(self) -> None:
        """Throw the data of a Consul that is down away."""

    @abstractmethod
    def server_pid(self, name: str) -> int:
        """0 when it does not run."""

    @abstractmethod
    def grant_admin(self, email: str) -> None:
        """Make an account an administrator, as an operator does on auth's machine."""

    @abstractmethod
    def reloads(self) -> int:
        """How often HAProxy has been reloaded since it was started."""

    # -- where things are found

    @abstractmethod
    def secret(self, path: str) -> str:
        """One of the stack's secrets, by its path among them."""

    @abstractmethod
    def _consul_address(self) -> str:
        """`host:port`."""

    @abstractmethod
    def _redis_address(self, name: RedisName) -> tuple[str, int]: ...

    @abstractmethod
    def _stats_csv(self, service: str) -> str:
        """`show stat` with at least the servers of the service's backend in it."""

    @abstractmethod
    def _edge_log_text(self) -> str: ...

    @abstractmethod
    def _servers_run(self) -> bool:
        """Whether everything but the instances of services runs."""

    @abstractmethod
    def _wake_servers(self) -> None:
        """Start those of them that are down, and let those go on that hang."""

    @abstractmethod
    def _wake(self, service: str) -> None:
        """Let those of its instances go on that hang."""

    # -- Redis

    def redis(self, name: RedisName, *words: str | int) -> Any:
        """One command to it with all rights; what it answered, text decoded.

        Raises redis.exceptions.RedisError, with which it refused or did not answer.
        """
        host, port = self._redis_address(name)
        with Redis(
            host=host,
            port=port,
            username=REDIS_OPERATOR,
            password=self.secret(f"redis/{REDIS_OPERATOR}.password"),
            socket_timeout=1,
            socket_connect_timeout=1,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        ) as client:
            return client.execute_command(*words)

    @contextlib.contextmanager
    def redis_config(self, name: RedisName, **values: str) -> Iterator[None]:
        """These of its settings changed (`maxmemory="1mb"`, hyphens as underscores) for as long as the context lasts."""
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
        """It refuses to write for as long as the context lasts, as a replica does whose primary has gone."""
        self.redis(name, "REPLICAOF", "127.0.0.1", 1)
        try:
            yield
        finally:
            self.redis(name, "REPLICAOF", "NO", "ONE")

    # -- Consul and the edge

    def consul(self, method: str, path: str, body: object = None, *, token: str | None = None) -> Any:
        """One call to Consul's HTTP interface, by default with all rights; the JSON that came, or None.

        Raises requests.HTTPError for an error status.
        """
        token = token or self.secret("consul/master.token")
        return ask_consul(self._consul_address(), method, path, body, token=token)

    def edge_servers(self, service: str) -> list[EdgeServer]:
        """HAProxy's servers for the service, from its Runtime API."""
        text = self._stats_csv(service)
        return [
            EdgeServer(
                # An instance that came back at another address stands as "id:hash" beside its former server.
                name=row["svname"].partition(":")[0],
                status=row["status"],
                errors=sum(int(row[key] or 0) for key in ("econ", "eresp", "wretr", "wredis")),
            )
            for row in csv.DictReader(io.StringIO(text.removeprefix("# ")))
            if row["pxname"] == f"svc_{service}" and row["svname"] not in {"FRONTEND", "BACKEND"}
        ]

    def edge_log(self) -> list[dict[str, Any]]:
        """The edge's request log: one JSON object a line, lines of other kinds left out."""
        lines = []
        for line in self._edge_log_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line[max(line.find("{"), 0) :]))
        return lines

    # -- health

    def ready(self, member: Member) -> bool:
        """Whether the instance says of itself, now, that it may take traffic. May be called from any thread."""
        return says_ready(member.host, member.port)

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
        """Return once every service has its instances, passing in Consul and up at the edge, and nothing more."""
        eventually(self.healthy, within_s, every_s=0.05)

    def repair(self) -> None:
        """Bring back the healthy state after whatever a test did, and wait for it."""
        if self.healthy():
            return
        self._wake_servers()
        eventually(lambda: self.consul("GET", "/v1/acl/token/self"), 30)
        for service, count in self.services().items():
            self._wake(service)
            if len(self.instances(service)) != count:
                self.scale(service, count)
            self.start(service)
            self._deregister_strangers(service)
        self.wait_healthy()

    def _deregister_strangers(self, service: str) -> None:
        ours = {member.id for member in self.instances(service)}
        for entry in self.consul("GET", f"/v1/catalog/service/{service}"):
            if entry["ServiceID"] not in ours:
                self.consul("PUT", f"/v1/agent/service/deregister/{entry['ServiceID']}")
