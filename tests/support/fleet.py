"""One interface to a running stack for the tests that break it: processes, or containers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

RedisName = Literal["redis-cache", "redis-state"]
GATEWAYS = ("gateway-identity", "gateway-business", "gateway-ai")


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

    backend: str
    name: str
    status: str
    weight: int
    errors: int
    sessions: int

    @property
    def up(self) -> bool:
        return self.status.startswith(("UP", "no check"))


class Fleet(Protocol):
    """What a resilience test may do to a stack, and ask of it. Every method that waits raises AssertionError when it waits in vain."""

    @property
    def edge_port(self) -> int: ...

    @property
    def edge_https_port(self) -> int: ...

    @property
    def stats_port(self) -> int: ...

    def services(self) -> Mapping[str, int]:
        """Service → how many instances the healthy fleet has of it."""
        ...

    def instances(self, service: str) -> list[Member]:
        """Those that Consul knows and the fleet itself runs, by id."""
        ...

    def ready(self, member: Member) -> bool:
        """Whether the instance says of itself, now, that it may take traffic. May be called from any thread."""
        ...

    def kill(self, member: Member) -> None:
        """SIGKILL; the fleet starts it again by itself."""
        ...

    def hang(self, member: Member) -> AbstractContextManager[None]:
        """SIGSTOP to all of its processes for as long as the context lasts."""
        ...

    def stop(self, service: str) -> None:
        """Stop every instance of the service: drained, and not started again. Returns when they have ended."""
        ...

    def crash(self, service: str) -> None:
        """SIGKILL to every instance of the service at once; they stay away until `start`."""
        ...

    def stop_member(self, member: Member) -> None:
        """The same for one."""
        ...

    def start(self, service: str) -> None:
        """Start what is stopped of the service; does not wait until it serves."""
        ...

    def scale(self, service: str, count: int) -> None:
        """Run that many instances; returns when the processes have been started or have ended."""
        ...

    def kill_consul(self) -> None:
        """SIGKILL to Consul, which stays down until `start_consul`."""
        ...

    def start_consul(self, *, empty: bool = False) -> None:
        """Start it again, with `empty` after its data has been thrown away; returns when it has a leader."""
        ...

    def kill_redis(self, name: RedisName) -> None:
        """SIGKILL to a Redis server, which stays down until `start_redis`."""
        ...

    def start_redis(self, name: RedisName) -> None:
        """Start it again; returns when it answers."""
        ...

    def hang_redis(self, name: RedisName) -> AbstractContextManager[None]:
        """SIGSTOP to it for as long as the context lasts: it takes connections, and says nothing."""
        ...

    def redis(self, name: RedisName, *words: str | int) -> Any:
        """One command to it with all rights; what it answered, text decoded.

        Raises redis.exceptions.RedisError, with which it refused or did not answer.
        """
        ...

    def redis_config(self, name: RedisName, **values: str) -> AbstractContextManager[None]:
        """These of its settings changed (`maxmemory="1mb"`, hyphens as underscores) for as long as the context lasts."""
        ...

    def read_only_redis(self, name: RedisName) -> AbstractContextManager[None]:
        """It refuses to write for as long as the context lasts, as a replica does whose primary has gone."""
        ...

    def kill_controller(self) -> None:
        """SIGKILL to the edge controller, which stays down until `start_controller`."""
        ...

    def start_controller(self) -> None: ...

    def consul(self, method: str, path: str, body: object = None, *, token: str | None = None) -> Any:
        """One call to Consul's HTTP interface, by default with all rights; the JSON that came, or None.

        Raises requests.HTTPError for an error status.
        """
        ...

    def consul_token(self, service: str) -> str:
        """A token that may register this service and no other."""
        ...

    def grant_admin(self, email: str) -> None:
        """Make an account an administrator, as an operator does on auth's machine."""
        ...

    def edge_servers(self, service: str) -> list[EdgeServer]:
        """HAProxy's servers for the service, from its Runtime API."""
        ...

    def edge_log(self) -> list[dict[str, Any]]:
        """The edge's request log: one JSON object a line, lines of other kinds left out."""
        ...

    def reloads(self) -> int:
        """How often HAProxy has been reloaded since it was started."""
        ...

    def controller_pid(self) -> int: ...

    def wait_healthy(self, within_s: float = 60.0) -> None:
        """Return once every service has its instances, passing in Consul and up at the edge, and nothing more."""
        ...

    def repair(self) -> None:
        """Bring back the healthy state after whatever a test did, and wait for it."""
        ...
