"""Consul on one machine: what its configuration files leave open, and the tokens it should know."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from discovery.consul.client import Client
from discovery.errors import ConsulError, ConsulRefused
from stack.errors import TookTooLong
from stack.servers.vault import Vault, write_private
from stack.settings import REPO, StackSettings

log = structlog.get_logger(__name__)

CONFIG = REPO / "consul"
ANONYMOUS = "00000000-0000-0000-0000-000000000002"  # accessor id, fixed by Consul
SHARED_POLICIES = ("agent", "anonymous", "controller", "operator")
RETIRED = ("gateway",)
"""Policies with a token each that earlier versions made: taken away where they are found."""
NODE_NAME = "breakwater-1"


def write_local(settings: StackSettings, vault: Vault) -> Path:
    """The agent's own file: ports, folder, gossip key, tokens. Mode 600. Returns its path.

    The management token comes from the file, not from `/v1/acl/bootstrap`, which works once: so a Consul that lost its
    data, and a `var/` that lost its secrets, both get well at the next start.
    """
    folder = settings.var / "consul"
    ports = {
        "http": settings.consul_http_port,
        "dns": settings.consul_dns_port,
        "server": settings.consul_server_port,
        "serf_lan": settings.consul_serf_port,
    }
    write_agent_file(folder / "local.json", vault, folder / "data", ports=ports)
    return folder / "local.json"


def write_agent_file(path: Path, vault: Vault, data: Path, **more: object) -> None:
    """What `common.hcl` leaves to each agent, and `more` of Consul's settings."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    local = {
        "node_name": NODE_NAME,
        "data_dir": str(data),
        "encrypt": vault.gossip_key(),
        "acl": {"tokens": {"master": vault.consul_token("master"), "agent": vault.consul_token("agent")}},
        **more,
    }
    write_private(path, json.dumps(local, indent=2) + "\n")
    _forget_old_gossip_key(data, vault.gossip_key())


def _forget_old_gossip_key(data: Path, key: str) -> None:
    """Consul prefers its keyring on disk: after the secrets were lost, drop the ring that the new key is not in."""
    ring = data / "serf" / "local.keyring"
    if ring.exists() and key not in ring.read_text():
        ring.unlink()
        log.info("consul gossip keyring dropped: its key is not ours any more")


def command(binary: str, local: Path) -> tuple[str, ...]:
    files = (CONFIG / "common.hcl", CONFIG / "server.hcl", local)
    return (binary, "agent", *(f"-config-file={file}" for file in files))


@dataclass(frozen=True, slots=True)
class ConsulAcl:
    """The ACL side of one Consul, seen with its management token. Every call is bounded; OSError when Consul does not answer."""

    address: str
    vault: Vault

    def wait_ready(self, within_s: float) -> None:
        """Until there is a leader that knows the management token. Raises TookTooLong."""
        until = time.monotonic() + within_s
        last = "no answer"
        while time.monotonic() < until:
            try:
                self._ask(lambda consul: consul.tokens.self())
                return
            except OSError as error:
                last = str(error)
            time.sleep(0.05)
        raise TookTooLong(
            f"Consul was not ready within {within_s:.0f} s ({last})", "see: make logs SERVICE=consul"
        )

    def complete(self) -> bool:
        """Whether Consul knows the controller's token, and so all that `apply` makes before it. OSError: it is not known."""
        return self._knows("controller")

    def apply(self, services: list[str], production: bool) -> None:
        """Make every policy and token that is missing: for `services`, for all that have had a token, and the shared ones.

        Idempotent; token values come from the vault, so instances keep theirs when Consul comes back empty.
        """
        policies = {entry["Name"]: entry for entry in self._ask(lambda consul: consul.policy.list())}
        for name in SHARED_POLICIES:
            self._policy(policies, name, (CONFIG / "policies" / f"{name}.hcl").read_text())
        named = sorted(
            set(services) | set(self.vault.consul_names()) - {"master", *SHARED_POLICIES, *RETIRED}
        )
        for name in named:
            kind = "gateway" if name.startswith("gateway-") else "service"
            template = (CONFIG / "policies" / f"{kind}.hcl").read_text()
            self._policy(policies, f"service-{name}", template.replace("@NAME@", name))
            self._token(name, f"service-{name}")
        self._anonymous(["anonymous"] if not production else [])
        for name in ("agent", "operator", "controller"):
            self._token(name, name)
        self._retire(policies)
        log.info("consul tokens applied", services=named, production=production)

    def _policy(self, known: dict[str, Any], name: str, rules: str) -> None:
        if name not in known:
            self._ask(lambda consul: consul.policy.create(name, rules=rules))
            return
        number = known[name]["ID"]
        if self._ask(lambda consul: consul.policy.get(number))["Rules"] != rules:
            self._ask(lambda consul: consul.policy.update(number, name, rules=rules))

    def _token(self, name: str, policy: str) -> None:
        if not self._knows(name):
            secret = self.vault.consul_token(name)
            body = {"SecretID": secret, "Description": f"breakwater {name}", "Policies": [{"Name": policy}]}
            self._ask(lambda consul: consul.tokens.create(body))

    def _retire(self, known: dict[str, Any]) -> None:
        for name in RETIRED:
            if name in known:
                self._delete_policy(known[name]["ID"])
            self.vault.forget_consul_token(name)

    def _delete_policy(self, number: str) -> None:
        # Its tokens go first: without a policy they would still be some.
        for token in self._ask(lambda consul: consul.tokens.list(policy=number)):
            accessor = token["AccessorID"]
            self._ask(lambda consul, accessor=accessor: consul.tokens.delete(accessor))  # type: ignore[misc]
        self._ask(lambda consul: consul.policy.delete(number))

    def _anonymous(self, wanted: list[str]) -> None:
        token = self._ask(lambda consul: consul.tokens.get(ANONYMOUS))
        have = [link["Name"] for link in token.get("Policies") or []]
        if have != wanted:
            token["Policies"] = [{"Name": name} for name in wanted]
            self._ask(lambda consul: consul.tokens.update(token, ANONYMOUS))

    def _knows(self, name: str) -> bool:
        try:
            self._ask(lambda consul: consul.tokens.self(), as_=name)
        except PermissionError:
            return False
        return True

    def _ask(self, ask: Callable[[Client], Any], as_: str = "master") -> Any:
        """One of python-consul2's calls. Raises PermissionError where Consul does not know the token, else OSError."""
        headers = {"X-Consul-Token": self.vault.consul_token(as_)}
        client = Client(self.address, headers=headers, timeout_s=(5.0, 5.0), connections=1)
        try:
            return ask(client)
        except ConsulRefused as error:
            raise (PermissionError if error.status == 403 else ConnectionError)(str(error)) from error
        except (ConsulError, ValueError) as error:
            raise ConnectionError(str(error)) from error
        finally:
            client.close()


def keep_tokens(
    acl: ConsulAcl,
    services: list[str],
    production: bool,
    every_s: float = 1.0,
    known: Callable[[], object] = lambda: None,
) -> None:
    """Never returns: gives Consul its policies and tokens, once as they are now, and whenever it has lost them (restarted empty).

    Calls `known` each time that it was seen to have them. Whatever goes wrong is tried again.
    """
    reported, applied = "", False
    while True:
        try:
            if not applied or not acl.complete():
                acl.wait_ready(10.0)
                acl.apply(services, production)
                applied = True
            reported = ""
            known()
        except Exception as error:  # even an answer that is not JSON: without tokens no instance registers
            if type(error).__name__ != reported:
                log.warning("consul tokens cannot be checked", error=repr(error)[:300])
            reported = type(error).__name__
        time.sleep(every_s)
