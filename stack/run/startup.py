"""Starting the stack in order, each step waiting for the one before."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from haproxy.controller.errors import Unreachable
from stack import http, views
from stack.errors import PortInUse, StackError, TookTooLong
from stack.run import ports
from stack.run.programs import find_binary
from stack.servers import rabbitmq, redis_servers
from stack.servers.consul_agent import ConsulAcl
from stack.servers.vault import Vault
from stack.settings import MAX_SOCKET_PATH, REPO

if TYPE_CHECKING:
    from stack.run.api import Stack

OLDEST_HAPROXY = (2, 5)
"""The first that can add and remove servers at run time."""

PROBE_CLIENT = "stack"
"""The name under which the stack asks auth for a token, to look through the edge at services that want one."""


class Startup:
    """One start of a stack; `until` is the deadline, a monotonic time in seconds."""

    def __init__(self, stack: Stack, progress: Callable[[str], None], until: float) -> None:
        self.stack = stack
        self.settings = stack.settings
        self.progress = progress
        self.until = until
        self.supervisor = stack.supervisor

    def run(self) -> None:
        """Raises StackError at the first step that fails; what was started stays for the caller to end."""
        self.progress("checking ports and programs")
        check_machine(self.stack)
        self._prepare()
        self.progress("starting Consul, Redis and the edge")
        self.supervisor.start(self.stack.catalogue.base_environment())
        broker = [rabbitmq.EPMD, rabbitmq.NAME] if self.settings.events == rabbitmq.NAME else []
        self._start("consul", *redis_servers.SERVERS, *broker, "mail")
        # While Consul elects itself.
        self._controller_init()
        self._start("haproxy")
        acl = ConsulAcl(self.settings.consul_address, self.stack.vault)
        acl.wait_ready(self._left(30))
        acl.apply(sorted(self.stack.fleet), self.settings.consul_production)
        self.progress(f"starting {len(self.stack.state.slots)} instances")
        self._compile()
        self._start("consul-tokens", "controller", *(slot.id for slot in self.stack.state.slots))
        wait_serving(self.stack, self.until, self.progress)
        if broker:
            self.progress("waiting for RabbitMQ")
            rabbitmq.node(self.settings).wait_ready(self._left(60))

    def _compile(self) -> None:
        """Before the first start, lest each instance compile the same code at the same time, and all that it imports."""
        environment = self.stack.catalogue.base_environment()
        if Path(environment["PYTHONPYCACHEPREFIX"], *REPO.parts[1:], "services").exists():
            return
        modules = sorted({spec.module for spec in self.stack.fleet.values()})
        code = "".join(f"import {module}.app\n" for module in modules)
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=self._left(60),
            cwd=self.settings.var / "home",
        )

    def _prepare(self) -> None:
        """Folders, secrets, ports and supervisord's configuration."""
        stack, settings = self.stack, self.settings
        private = (
            settings.run_dir,
            settings.log_dir,
            settings.edge_dir,
            settings.data_dir,
            settings.mail_dir,
            settings.var / "home",
        )
        for folder in private:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        stack.vault.open()
        stack.vault.write_clients([*stack.fleet, PROBE_CLIENT])
        for name in stack.fleet:
            stack.vault.redis_password_file(name)
            if settings.events == rabbitmq.NAME and not name.startswith(redis_servers.GATEWAY):
                stack.vault.rabbitmq_password(name)
        if settings.events == rabbitmq.NAME:
            stack.vault.rabbitmq_password(rabbitmq.OPERATOR)
        stack.state.settings = settings.model_dump(mode="json")
        stack.state.slots = []
        stack.assign([(name, n) for name in stack.fleet for n in range(1, stack.counts[name] + 1)])
        stack.state.save()
        self.supervisor.write(stack.programs())

    def _start(self, *names: str) -> None:
        for name in names:
            self.supervisor.start_program(name)
        self.supervisor.wait(names, {"RUNNING", "STARTING"}, self._left(30))

    def _controller_init(self) -> None:
        """Have the controller write a first valid configuration, so that HAProxy can start."""
        argv = [sys.executable, "-m", "haproxy.controller", "init"]
        done = subprocess.run(
            argv,
            env=self.stack.edge_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=self._left(60),
            cwd=self.settings.var / "home",
        )
        if done.returncode:
            raise StackError(
                f"the edge's first configuration failed: {(done.stderr or done.stdout).strip()[-800:]}"
            )

    def _left(self, most_s: float) -> float:
        return max(1.0, min(most_s, self.until - time.monotonic()))


def check_machine(stack: Stack) -> None:
    """Everything that would make the start fail half-way, checked before anything starts. Raises StackError, ValidationError."""
    settings = stack.settings
    odd = set(re.sub(r"[\w./+@,~ -]", "", str(settings.var)))
    if odd:
        raise StackError(
            f"{settings.var} holds {' '.join(sorted(odd))}, which supervisord and HAProxy would read as something else",
            "choose another folder for the state: BREAKWATER_VAR=<folder>",
        )
    longest = settings.run_dir / "haproxy-master.sock"
    if len(str(longest).encode()) > MAX_SOCKET_PATH:
        raise StackError(
            f"the path of a Unix socket would be too long ({len(str(longest).encode())} bytes, at most {MAX_SOCKET_PATH}): {longest}",
            "choose a shorter folder for the state: BREAKWATER_VAR=<folder>",
        )
    seen: dict[int, str] = {}
    for variable, port in settings.fixed_ports.items():
        if port in seen:
            raise StackError(f"{variable} and {seen[port]} are both {port}", "give each a port of its own")
        seen[port] = variable
        if not ports.is_free(port):
            raise PortInUse(variable, port, ports.holder(port))
    stack.edge_settings()
    for name in ("consul", "redis-server"):
        find_binary(name)
    check_haproxy(find_binary("haproxy"))


def check_haproxy(binary: str) -> None:
    """Raises StackError when HAProxy is too old to add servers at run time."""
    done = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=10)
    match = re.search(r"version (\d+)\.(\d+)", done.stdout)
    if match is None:
        raise StackError(
            f"{binary} -v names no version: {done.stdout[:200]!r}", "install HAProxy 2.6 or newer"
        )
    found = (int(match[1]), int(match[2]))
    if found < OLDEST_HAPROXY:
        raise StackError(
            f"HAProxy {found[0]}.{found[1]} ({binary}) is too old: before 2.5 servers cannot be added at run time",
            "install HAProxy 2.6 or newer (Debian 12 has it), or put a newer one first on PATH",
        )


def wait_serving(stack: Stack, until: float, progress: Callable[[str], None]) -> None:
    """Until every running instance is passing in Consul and up in HAProxy, and every service answered through the edge.

    Raises TookTooLong, naming what is missing.
    """
    token = stack.vault.consul_token("operator")
    answered: set[str] = set()
    reported = -1
    while True:
        missing = _not_serving(stack, token, answered)
        if not missing:
            return
        if time.monotonic() >= until:
            raise TookTooLong(
                f"not serving yet: {', '.join(missing)}", f"see the logs in {stack.settings.log_dir}"
            )
        if len(missing) != reported:
            reported = len(missing)
            progress("waiting for " + ", ".join(missing[:6]) + (" …" if reported > 6 else ""))
        time.sleep(0.1)


def _not_serving(stack: Stack, token: str, answered: set[str]) -> list[str]:
    try:
        consul = views.consul_view(stack.settings.consul_address, token)
        edge = views.edge_view(stack.settings.run_dir / "haproxy.sock")
    except (OSError, Unreachable) as error:
        return [f"Consul and HAProxy ({error})"]
    live = [one for one in stack.instances() if one.state != "STOPPED"]
    late = [
        i.id
        for i in live
        if consul.get(i.id) not in {"passing", "warning"}
        or not views.is_up(edge.get(i.id))
        or not views.instance_ready(i.service, i.port)
    ]
    services = {one.service for one in live} - answered - {name.rpartition("-")[0] for name in late}
    bearer = probe_headers(stack.settings.edge_url, stack.vault) if services else {}
    address = stack.settings.edge_url.removeprefix("http://")
    for name in sorted(services):
        if views.answered_by(address, stack.fleet[name].probe, bearer):
            answered.add(name)
    return late or sorted(services - answered)


def probe_headers(edge_url: str, vault: Vault) -> dict[str, str]:
    """An Authorization header with a token for the stack itself; nothing when auth does not give one (yet)."""
    body = {
        "grant_type": "client_credentials",
        "client_id": PROBE_CLIENT,
        "client_secret": vault.service_secret_file(PROBE_CLIENT).read_text().strip(),
    }
    try:
        answer = http.call(
            edge_url.removeprefix("http://"), "POST", "/api/auth/token", body=body, timeout_s=5
        )
    except OSError:
        return {}
    return {"Authorization": f"Bearer {answer.json()['access_token']}"} if answer.status_code == 200 else {}
