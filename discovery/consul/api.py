"""What we ask of Consul's HTTP API: bounded in time, with indexes as numbers, answers checked, and our own errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from discovery.clock import SYSTEM_CLOCK
from discovery.consul.client import Client, service_path, split_address
from discovery.consul.json import CheckState, parse_instances, read_as, read_index, registration_body
from discovery.contract import registration_meta
from discovery.errors import CallError, ConsulMalformed, ConsulRefused, ConsulUnreachable
from discovery.http.transport import HttpTransport, Outgoing
from discovery.model import Instance, Registration, Status

T = TypeVar("T")
_Object = dict[str, Any]
MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ServiceRead:
    """What one read of a service gave: its own index, and its instances, or None where only the index was asked for."""

    service: str
    index: int
    instances: tuple[Instance, ...] | None


class ConsulApi:
    """One agent. Thread-safe; `read_service` and `service_index` keep one connection.

    `address` is `host:port` or `http://host:port`. Every call ends within its timeout and raises only ConsulError
    (ContractError for a registration that is not allowed). It keeps at most `pool` connections: one for reads in a row, the
    others for all else (a view's four blocking queries, two keys that the edge controller follows). Blocking calls return
    once the index is another than `index`, or after `wait_s` (and a sixteenth).
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8500",
        token: str | None = None,
        *,
        connect_timeout_s: float = 1.0,
        read_timeout_s: float = 5.0,
        pool: int = 10,
    ) -> None:
        headers = {"X-Consul-Token": token} if token else {}
        self._client = Client(
            address,
            headers=headers,
            timeout_s=(connect_timeout_s, read_timeout_s),
            connections=max(1, pool - 1),
        )
        self._read_timeout_s = read_timeout_s
        self._transport = HttpTransport(
            connect_timeout_s=connect_timeout_s, connections=1, clock=SYSTEM_CLOCK
        )
        self._agent = Instance("consul", "agent", "", *split_address(address))
        lines = {"Accept": "application/json", **headers}
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode()

    def close(self) -> None:
        """Give all connections back; blocking queries under way end when their time is up."""
        self._client.close()
        self._transport.drop(self._transport.places())

    # -- our own registration, at the agent

    def register(self, registration: Registration, status: Status = "critical") -> None:
        """Register an instance, or bring its registration up to date. `status` is its check's until the first check."""
        self._client.register(registration_body(registration, status))

    def deregister(self, instance_id: str) -> None:
        """Take an instance out of the agent and the catalog; one that is not there is no error."""
        try:
            self._client.agent.service.deregister(instance_id)
        except ConsulRefused as error:
            # Consul 1.8 answers 500 for an id it does not know, newer ones 404.
            if error.status != 404 and "Unknown service" not in error.text:
                raise

    def holds(self, registration: Registration) -> bool:
        """Whether the agent knows the instance exactly as this registration describes it, with a check of its own.

        Consul lets any service that registers take a check's id, and with it the check; an instance without one counts as
        passing for ever.
        """
        try:
            found = read_as(_Object, _read(lambda: self._client.service(registration.id)))
        except ConsulRefused as error:
            if error.status == 404:
                return False
            raise
        if (
            found.get("Service") != registration.name
            or found.get("Address") != registration.address
            or found.get("Port") != registration.port
            or (found.get("Meta") or {}) != registration_meta(registration)
        ):
            return False
        return registration.check is None or bool(
            read_as(_Object, _read(lambda: self._client.own_check(registration.id)))
        )

    # -- the catalog

    def leader(self) -> str:
        """The address of the cluster's leader; empty while there is none."""
        return str(_read(self._client.status.leader) or "")

    def catalog_services(
        self, index: int = 0, wait_s: float = 0.0, *, consistent: bool = False
    ) -> tuple[int, frozenset[str]]:
        """The names of all services. Blocks."""
        consistency = "consistent" if consistent else None
        found, data = _indexed(
            lambda: self._client.catalog.services(consistency=consistency, **_when(index, wait_s))
        )
        return found, frozenset(read_as(_Object, data))

    def nodes_index(self, index: int = 0, wait_s: float = 0.0) -> tuple[int, None]:
        """The index of the list of nodes, which moves with a node's address and not with its checks. Blocks."""
        found, data = _indexed(lambda: self._client.nodes_index(**_when(index, wait_s)))
        read_as(list[Any], data)
        return found, None

    def health_state(
        self, state: str, index: int = 0, wait_s: float = 0.0
    ) -> tuple[int, dict[tuple[str, str], CheckState]]:
        """The checks in a state (`any`, `passing`, `warning`, `critical`), by (node, check id). Blocks.

        `any` is megabytes in a large fleet, and all of it is sent again for every change of one check.
        """
        found, data = _indexed(lambda: self._client.health.state(state, **_when(index, wait_s)))
        return found, {(check.node, check.check_id): check for check in read_as(list[CheckState], data)}

    def service_index(self, name: str) -> ServiceRead:
        """A service's index alone, which moves with any change of its instances, checks and nodes. Kept connection."""
        return self._read_service(name, with_instances=False)

    def read_service(self, name: str) -> ServiceRead:
        """A service's instances in whatever state, sorted by key, and their index. Kept connection.

        ConsulUnreachable concerns whatever is asked next as well, any other ConsulError this service alone.
        """
        return self._read_service(name, with_instances=True)

    def _read_service(self, name: str, *, with_instances: bool) -> ServiceRead:
        start = f"GET {service_path(name, with_instances=with_instances)} HTTP/1.1\r\n".encode()
        question = Outgoing("consul", "GET", start, self._fields, None, twice=True)
        until = SYSTEM_CLOCK.monotonic() + self._read_timeout_s
        try:
            answer = self._transport.send(
                question,
                self._agent,
                timeout_s=self._read_timeout_s,
                read_timeout_s=self._read_timeout_s,
                max_bytes=MAX_BODY_BYTES,
            )
            answer.read_whole(until)
        except CallError as error:
            raise ConsulUnreachable(str(error)) from error
        if answer.status != 200:
            raise ConsulRefused(answer.status, answer.data.decode(errors="replace"))
        index = read_index(answer.headers.get("X-Consul-Index"))
        return ServiceRead(name, index, parse_instances(name, answer.data) if with_instances else None)

    # -- key/value

    def kv_entry(self, key: str, index: int = 0, wait_s: float = 0.0) -> tuple[int, int, bytes | None]:
        """A key as it certainly is: the index to wait on, that of its own last change (0: there is none), its value. Blocks."""
        found, data = _indexed(
            lambda: self._client.kv.get(key, consistency="consistent", **_when(index, wait_s))
        )
        if data is None:
            return found, 0, None
        item = read_as(_Object, data)
        return found, int(item.get("ModifyIndex") or 0), item.get("Value") or b""

    def kv_list(self, prefix: str) -> dict[str, bytes]:
        """All keys under a prefix, with their values."""
        _, data = _indexed(lambda: self._client.kv.get(prefix, recurse=True))
        items = read_as(list[_Object], data or [])
        return {str(item.get("Key")): item.get("Value") or b"" for item in items}

    def kv_put(self, key: str, value: bytes) -> None:
        """Write a key. At most 512 KiB, Consul's own limit."""
        _read(lambda: self._client.kv.put(key, value))

    def kv_cas(self, key: str, value: bytes, modified: int) -> bool:
        """Write a key unless it has changed since `modified` (0: unless there is one); returns whether it was written."""
        return _read(lambda: self._client.kv.put(key, value, cas=modified)) is True

    def kv_delete(self, key: str) -> None:
        """Delete a key; one that is not there is no error."""
        _read(lambda: self._client.kv.delete(key))


def _when(index: int, wait_s: float) -> dict[str, Any]:
    """What a question that Consul may hold back is asked with."""
    return {"index": index, "wait": f"{int(wait_s * 1000)}ms"} if index > 0 and wait_s > 0 else {}


def _read(ask: Callable[[], T]) -> T:
    """What python-consul2 makes of an answer. It takes any JSON, and fails in its own ways on anything else."""
    try:
        return ask()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConsulMalformed(f"{type(error).__name__}: {error}"[:200]) from error


def _indexed(ask: Callable[[], tuple[str | None, Any]]) -> tuple[int, Any]:
    index, data = _read(ask)
    return read_index(index), data
