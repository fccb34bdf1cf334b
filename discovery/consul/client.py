"""python-consul2's calls over connections of our own, and the requests that it lacks: the only file that knows the library.

Ref: https://developer.hashicorp.com/consul/api-docs
"""

from __future__ import annotations

import json
import re
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from consul.base import CB, Consul
from consul.std import HTTPClient
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from discovery.errors import ConsulError, ConsulRefused, ConsulUnreachable

# No id and no name is empty, so that these select nothing and leave the index in the header.
NO_INSTANCE = 'Service.ID == ""'
NO_NODE = 'Node == ""'


# A blocking query may take up to a sixteenth longer than asked for, so that clients do not return all at once.
JITTER_SHARE = 1 / 16
BLOCKING_MARGIN_S = 2.0
_WAIT = re.compile(r"[?&]wait=([0-9]+)ms")


class Session(requests.Session):
    """Ends in our errors: those of python-consul2 do not carry the status. That there is no such key is left to it, as an answer.

    Where Consul may hold an answer back, it is waited for as much longer.
    """

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **more: Any) -> requests.Response:
        if wait := _WAIT.search(str(url)):
            wait_s = int(wait[1]) / 1000
            more["timeout"] = (more["timeout"][0], wait_s * (1 + JITTER_SHARE) + BLOCKING_MARGIN_S)
        try:
            answer = super().request(method, url, *args, **more)
        except (requests.RequestException, HTTPError, HTTPException, OSError, ValueError) as error:
            raise ConsulUnreachable(f"{type(error).__name__}: {error}") from error
        no_key = answer.status_code == 404 and method == "GET" and "/v1/kv/" in str(url)
        if answer.status_code != 200 and not no_key:
            raise ConsulRefused(answer.status_code, answer.content.decode(errors="replace"))
        return answer


class Client:
    """python-consul2's calls to one agent. Raises ConsulUnreachable, ConsulRefused.

    Its own class `Consul` would let variables of the environment override the address and the token.
    """

    def __init__(
        self, address: str, *, headers: dict[str, str], timeout_s: tuple[float, float], connections: int
    ) -> None:
        """`timeout_s` is to connect and to read."""
        host, port = split_address(address)
        self.http = HTTPClient(f"[{host}]" if ":" in host else host, port, timeout=timeout_s)
        self.http.session = session = Session()
        session.headers.update(headers)
        session.trust_env = False  # a proxy or .netrc of the environment must not carry agent calls away
        session.mount("http://", HTTPAdapter(1, connections, max_retries=0))
        # What its parts look for at their client.
        self.token, self.dc, self.consistency = None, None, "default"
        self.tokens = Consul.ACL.Tokens(self)
        self.policy = Consul.ACL.Policy(self)
        self.agent = Consul.Agent(self)
        self.catalog = Consul.Catalog(self)
        self.health = Consul.Health(self)
        self.kv = Consul.KV(self)
        self.status = Consul.Status(self)

    def close(self) -> None:
        self.http.session.close()

    def register(self, body: dict[str, Any]) -> None:
        """Its `agent.service.register` knows no weights and no `replace-existing-checks`."""
        params = {"replace-existing-checks": "true"}
        self.http.put(CB.bool(), "/v1/agent/service/register", params, json.dumps(body))

    def service(self, instance_id: str) -> Any:
        """One service of the agent. Its `agent.services` reads all of them."""
        return self.http.get(CB.json(), f"/v1/agent/service/{instance_id}")

    def own_check(self, instance_id: str) -> Any:
        """The instance's check with the id that Consul gave it, if it is still its own. Its `agent.checks` takes no filter."""
        found = f'ServiceID == "{instance_id}" and CheckID == "service:{instance_id}"'
        return self.http.get(CB.json(), "/v1/agent/checks", {"filter": found})

    def nodes_index(self, **when: Any) -> tuple[str, Any]:
        """The index of the list of nodes, with none of them. Its `catalog.nodes` takes no filter."""
        params = {**when, "filter": NO_NODE}
        found: tuple[str, Any] = self.http.get(CB.json(index=True), "/v1/catalog/nodes", params)
        return found


def service_path(name: str, *, with_instances: bool) -> str:
    """For reads in a row: `health.service` takes no filter, and a thousand of its calls cost 0.7 s of processor."""
    return f"/v1/health/service/{quote(name, safe='')}" + (
        "" if with_instances else f"?filter={quote(NO_INSTANCE)}"
    )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port` or `http://host:port`. Raises ConsulError."""
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        port = parts.port or 8500
    except ValueError as error:
        raise ConsulError(f"no address of Consul: {address!r}: {error}") from None
    if parts.scheme != "http" or not parts.hostname:
        raise ConsulError(f"no address of Consul: {address!r}; give host:port")
    return parts.hostname, port
