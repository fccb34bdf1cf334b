"""Consul agents started from the files in `consul/`, as the stack starts them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from stack import http
from stack.run.programs import find_binary
from stack.servers import consul_agent
from stack.servers.consul_agent import CONFIG, ConsulAcl
from stack.servers.vault import Vault, write_private
from stack.settings import StackSettings
from tests.support.servers import Process


@dataclass
class Agent:
    """One Consul agent started from our files."""

    settings: StackSettings
    vault: Vault
    process: Process

    @property
    def acl(self) -> ConsulAcl:
        return ConsulAcl(self.settings.consul_address, self.vault)

    def status(self, token: str | None, method: str, path: str, body: object = None) -> int:
        return self.answer(token, method, path, body).status_code

    def answer(self, token: str | None, method: str, path: str, body: object = None) -> requests.Response:
        headers = {"X-Consul-Token": self.vault.consul_token(token)} if token else {}
        return http.call(self.settings.consul_address, method, path, body=body, headers=headers)

    def register(self, token: str | None, name: str) -> int:
        return self.status(
            token, "PUT", "/v1/agent/service/register", {"Name": name, "ID": f"{name}-1", "Port": 1}
        )


@contextlib.contextmanager
def agent(
    var: Path, *files: str, changes: dict[str, Any] | None = None, vault: Vault | None = None
) -> Iterator[Agent]:
    settings = StackSettings.isolated(var)
    vault = vault or Vault(settings.secrets_dir)
    vault.open()
    local = consul_agent.write_local(settings, vault)
    if changes:
        write_private(local, json.dumps({**json.loads(local.read_text()), **changes}))
    argv = [
        find_binary("consul"),
        "agent",
        *(f"-config-file={CONFIG / name}" for name in files),
        f"-config-file={local}",
    ]
    process = Process(argv, var / "consul.log")
    process.start()
    try:
        yield Agent(settings, vault, process)
    finally:
        process.stop()
