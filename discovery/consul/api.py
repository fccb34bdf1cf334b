"""Consul's HTTP API: the only file that knows its paths, headers and JSON.

Single requests go through python-consul2's HTTP client, with our own timeouts, pool and errors; its high-level calls are
passed by because they lack half of what is needed (weights, `replace-existing-checks`, filters), and its `Consul` class
because variables of the environment override its arguments. Ref: https://developer.hashicorp.com/consul/api-docs
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from consul.std import HTTPClient
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from discovery.consul.json import (
    CheckState,
    as_dict,
    as_list,
    check_state,
    kv_value,
    parse_instances,
    read_index,
    read_json,
    registration_body,
)
from discovery.consul.reader import Reader
from discovery.contract import registration_meta
from discovery.errors import ConsulError, ConsulRefused, ConsulUnreachable
from discovery.model import EMPTY, Instance, Registration, Status

# A blocking query may take up to a sixteenth longer than asked for, so that clients do not return all at once.
JITTER_SHARE = 1 / 16
BLOCKING_MARGIN_S = 2.0
# A view's four, and two keys that the edge controller follows.
WATCH_CONNECTIONS = 6
# No id and no name is empty, so that these select nothing and leave the index in the header.
_NOTHING = quote('Service.ID == ""')
_NO_NODE = 'Node == ""'


@dataclass(frozen=True, slots=True)
class ServiceRead:
    """What one read of a service gave: its own index, and its instances, or None where only the index was asked for."""

    service: str
    index: int
    instances: tuple[Instance, ...] | None


class ConsulApi:
    """One agent. Thread-safe; `read_service` and `service_index` take turns on one kept connection.

    `address` is `host:port` or `http://host:port`. Every call ends within its timeout and raises only ConsulError
    (ContractError for a registration that is not allowed). It holds at most `pool` connections: six for blocking
    queries, one kept for reads in a row, the rest for single requests.
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
        host, port = _split_address(address)
        headers = {"X-Consul-Token": token} if token else {}
        self._headers = headers
        self._host, self._port = host, port
        self._connect_timeout_s = connect_timeout_s
        single = max(1, pool - WATCH_CONNECTIONS - 1)
        self._single = _http(host, port, (connect_timeout_s, read_timeout_s), single, block=True)
        self._watchers: dict[float, HTTPClient] = {}
        self._reader = Reader(
            host, port, connect_timeout_s=connect_timeout_s, read_timeout_s=read_timeout_s, headers=headers
        )

    def close(self) -> None:
        """Give all connections back; blocking queries under way end when their time is up."""
        for http in (self._single, *self._watchers.values()):
            http.session.close()
        self._reader.close()

    # -- our own registration, at the agent

    def register(self, registration: Registration, status: Status = "critical") -> None:
        """Register an instance, or bring its registration up to date. `status` is its check's until the first check."""
        self._put(
            "/v1/agent/service/register",
            registration_body(registration, status),
            {"replace-existing-checks": "true"},
        )

    def deregister(self, instance_id: str) -> None:
        """Take an instance out of the agent and the catalog; one that is not there is no error."""
        try:
            self._put(f"/v1/agent/service/deregister/{quote(instance_id, safe='')}")
        except ConsulRefused as error:
            # Consul 1.8 answers 500 for an id it does not know, newer ones 404.
            if error.status != 404 and "Unknown service" not in error.text:
                raise

    def holds(self, registration: Registration) -> bool:
        """Whether the agent knows the instance exactly as this registration describes it, with a check of its own."""
        try:
            _, data = self._get(self._single, f"/v1/agent/service/{quote(registration.id, safe='')}")
        except _NotFound:
            return False
        found = as_dict(data)
        return (
            found.get("Service") == registration.name
            and found.get("Address") == registration.address
            and found.get("Port") == registration.port
            and (found.get("Meta") or {}) == registration_meta(registration)
            and (registration.check is None or self._has_check(registration.id))
        )

    def _has_check(self, instance_id: str) -> bool:
        """Whether the instance's check is still its own. Consul lets any service that registers take a check's id, and
        with it the check; an instance without one counts as passing for ever."""
        params = {"filter": f'ServiceID == "{instance_id}" and CheckID == "service:{instance_id}"'}
        return bool(as_dict(self._get(self._single, "/v1/agent/checks", params)[1]))

    # -- the catalog

    def leader(self) -> str:
        """The address of the cluster's leader; empty while there is none."""
        return str(self._get(self._single, "/v1/status/leader")[1] or "")

    def catalog_services(
        self, index: int = 0, wait_s: float = 0.0, *, consistent: bool = False
    ) -> tuple[int, frozenset[str]]:
        """The names of all services. Blocks up to `wait_s` (and a sixteenth) while the index stays at `index`."""
        params = {"consistent": ""} if consistent else {}
        found, data = self._blocking("/v1/catalog/services", index, wait_s, params)
        return found, frozenset(as_dict(data))

    def nodes_index(self, index: int = 0, wait_s: float = 0.0) -> tuple[int, None]:
        """The index of the list of nodes, which moves with a node's address and not with its checks. Blocks like the above."""
        found, data = self._blocking("/v1/catalog/nodes", index, wait_s, {"filter": _NO_NODE})
        as_list(data)
        return found, None

    def health_state(
        self, index: int = 0, wait_s: float = 0.0, state: str = "any"
    ) -> tuple[int, dict[tuple[str, str], CheckState]]:
        """The checks in a state (`any`, `passing`, `warning`, `critical`), by (node, check id). Blocks like the above.

        `any` is megabytes in a large fleet, and all of it is sent again for every change of one check.
        """
        found, data = self._blocking(f"/v1/health/state/{state}", index, wait_s)
        return found, {(check.node, check.check_id): check for check in map(check_state, as_list(data))}

    def health_service(
        self, name: str, index: int = 0, wait_s: float = 0.0
    ) -> tuple[int, tuple[Instance, ...]]:
        """A service's instances in whatever state, sorted by key. Blocks like the above."""
        found, data = self._blocking(f"/v1/health/service/{quote(name, safe='')}", index, wait_s)
        return found, parse_instances(name, data)

    def service_index(self, name: str) -> ServiceRead:
        """A service's index alone, which moves with any change of its instances, checks and nodes. Kept connection."""
        return self._read_service(name, f"?filter={_NOTHING}", with_instances=False)

    def read_service(self, name: str) -> ServiceRead:
        """A service's instances in whatever state, and their index. Kept connection.

        ConsulUnreachable concerns whatever is asked next as well, any other ConsulError this service alone.
        """
        return self._read_service(name, "", with_instances=True)

    def _read_service(self, name: str, query: str, *, with_instances: bool) -> ServiceRead:
        code, headers, body = self._reader.get(f"/v1/health/service/{quote(name, safe='')}{query}")
        _raise_for_status(code, body)
        data = read_json(body)
        index = read_index(headers.get("X-Consul-Index"))
        return ServiceRead(name, index, parse_instances(name, data) if with_instances else None)

    # -- key/value

    def kv_get(self, key: str) -> bytes | None:
        """The value of a key; None when there is no such key."""
        return self.kv_watch(key)[1]

    def kv_watch(self, key: str, index: int = 0, wait_s: float = 0.0) -> tuple[int, bytes | None]:
        """A key's value and index, as they certainly are. Blocks up to `wait_s` (and a sixteenth) while the index stays at `index`."""
        found, _, value = self.kv_entry(key, index, wait_s)
        return found, value

    def kv_entry(self, key: str, index: int = 0, wait_s: float = 0.0) -> tuple[int, int, bytes | None]:
        """As `kv_watch`, and between them the index of the key's own last change: 0 where there is no such key."""
        try:
            found, data = self._blocking(f"/v1/kv/{quote(key)}", index, wait_s, {"consistent": ""})
        except _NotFound as error:
            return error.index, 0, None
        item = as_dict(next(iter(as_list(data)), None) or {})
        return found, int(item.get("ModifyIndex") or 0), kv_value(item)

    def kv_list(self, prefix: str) -> dict[str, bytes]:
        """All keys under a prefix, with their values."""
        try:
            _, data = self._get(self._single, f"/v1/kv/{quote(prefix)}", {"recurse": ""})
        except _NotFound:
            return {}
        return {str(item.get("Key")): kv_value(item) for item in map(as_dict, as_list(data))}

    def kv_put(self, key: str, value: bytes) -> None:
        """Write a key. At most 512 KiB, Consul's own limit."""
        self._put(f"/v1/kv/{quote(key)}", value)

    def kv_cas(self, key: str, value: bytes, modified: int) -> bool:
        """Write a key unless it has changed since `modified` (0: unless there is one); answers whether it was written."""
        return self._put(f"/v1/kv/{quote(key)}", value, {"cas": str(modified)}).strip() == b"true"

    def kv_delete(self, key: str) -> None:
        """Delete a key; one that is not there is no error."""
        path = f"/v1/kv/{quote(key)}"
        code, _, text = self._send(lambda: self._single.delete(_whole, path, headers=self._headers))
        _raise_for_status(code, text)

    # -- requests

    def _blocking(
        self, path: str, index: int, wait_s: float, params: Mapping[str, str] = EMPTY
    ) -> tuple[int, Any]:
        if index <= 0 or wait_s <= 0:
            return self._get(self._single, path, params)
        timeout_s = wait_s * (1 + JITTER_SHARE) + BLOCKING_MARGIN_S
        http = self._watchers.get(timeout_s)
        if http is None:
            # Its client has one timeout for everything: one client for each length of wait.
            timeout = (self._connect_timeout_s, timeout_s)
            made = _http(self._host, self._port, timeout, WATCH_CONNECTIONS, block=False)
            http = self._watchers.setdefault(timeout_s, made)
        query = {**params, "index": str(index), "wait": f"{int(wait_s * 1000)}ms"}
        return self._get(http, path, query)

    def _get(self, http: HTTPClient, path: str, params: Mapping[str, str] = EMPTY) -> tuple[int, Any]:
        code, headers, body = self._send(lambda: http.get(_whole, path, dict(params), self._headers))
        index = headers.get("X-Consul-Index")
        _raise_for_status(code, body, read_index(index) if index else 0)
        return read_index(index) if index else 0, read_json(body)

    def _put(self, path: str, body: object = b"", params: Mapping[str, str] = EMPTY) -> bytes:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        code, _, text = self._send(lambda: self._single.put(_whole, path, dict(params), data, self._headers))
        _raise_for_status(code, text)
        return text

    def _send(
        self, send: Callable[[], tuple[int, Mapping[str, str], bytes]]
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            return send()
        except (requests.RequestException, HTTPError, HTTPException, OSError, ValueError) as error:
            raise ConsulUnreachable(f"{type(error).__name__}: {error}") from error


class _NotFound(ConsulRefused):
    """404, which for most reads is an answer. `index` is the one to wait on."""

    def __init__(self, text: str, index: int) -> None:
        self.index = index
        super().__init__(404, text)


def _split_address(address: str) -> tuple[str, int]:
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        port = parts.port or 8500
    except ValueError as error:
        raise ConsulError(f"no address of Consul: {address!r}: {error}") from None
    if parts.scheme != "http" or not parts.hostname:
        raise ConsulError(f"no address of Consul: {address!r}; give host:port")
    return parts.hostname, port


def _http(host: str, port: int, timeout: tuple[float, float], connections: int, block: bool) -> HTTPClient:
    http = HTTPClient(f"[{host}]" if ":" in host else host, port, "http", timeout=timeout)
    http.session.trust_env = False  # a proxy or .netrc of the environment must not carry agent calls away
    http.session.mount("http://", HTTPAdapter(1, connections, max_retries=0, pool_block=block))
    return http


def _whole(response: Any) -> tuple[int, Mapping[str, str], bytes]:
    return response.code, response.headers, response.content


def _raise_for_status(code: int, body: bytes, index: int = 0) -> None:
    if code == 404:
        raise _NotFound(body.decode(errors="replace"), index)
    if code != 200:
        raise ConsulRefused(code, body.decode(errors="replace"))
