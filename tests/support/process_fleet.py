"""The fleet as processes of this machine, driven through the same class as the commands of the Makefile."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from haproxy.controller.errors import Unreachable
from haproxy.controller.runtime.socket import Master, Runtime, command
from stack.run import processes
from stack.run.api import INFRASTRUCTURE, Stack
from stack.settings import REPO, StackSettings
from tests.support.eventually import eventually, time_scale
from tests.support.fleet import Fleet, Member, RedisName


class ProcessFleet(Fleet):
    """A `Fleet` over one `Stack` whose state lives under `var`."""

    def __init__(
        self, var: Path, env: Mapping[str, str], service_env: Mapping[str, Mapping[str, str]]
    ) -> None:
        self.stack = Stack(StackSettings.isolated(var), env=env, service_env=service_env)
        self.edge_port = self.stack.settings.edge_http_port
        self.edge_https_port = self.stack.settings.edge_https_port
        self.stats_port = self.stack.settings.stats_port

    def up(self) -> None:
        self.stack.up(within_s=120 * time_scale())

    def down(self) -> None:
        """Whatever has been done to it, no process of it is left."""
        running = processes.of_stack(self.stack.settings.var)
        self.stack.down()
        assert processes.wait_gone(running, 0) == []
        assert processes.of_stack(self.stack.settings.var) == []

    def services(self) -> Mapping[str, int]:
        return self.stack.counts

    def instances(self, service: str) -> list[Member]:
        return [Member(one.service, one.id, one.port, one.pid) for one in self.stack.instances(service)]

    def kill(self, member: Member) -> None:
        self.stack.kill(member.id)

    def hang(self, member: Member) -> AbstractContextManager[None]:
        return self.hang_server(member.id)

    def stop(self, service: str) -> None:
        self.stack.stop_service(service)

    def crash(self, service: str) -> None:
        self.stack.crash(*(member.id for member in self.instances(service) if member.pid))

    def stop_member(self, member: Member) -> None:
        self.stack.stop(member.id)

    def start(self, service: str) -> None:
        self.stack.start_service(service)

    def scale(self, service: str, count: int) -> None:
        self.stack.scale(service, count)

    def kill_server(self, name: str) -> None:
        self.stack.crash(name)

    @contextlib.contextmanager
    def hang_server(self, name: str) -> Iterator[None]:
        self.stack.pause(name)
        try:
            yield
        finally:
            self.stack.resume(name)

    def start_server(self, name: str) -> None:
        self.stack.start(name)

    def empty_consul(self) -> None:
        shutil.rmtree(self.stack.settings.var / "consul" / "data")

    def server_pid(self, name: str) -> int:
        return self.stack.pid(name)

    def secret(self, path: str) -> str:
        return (self.stack.settings.secrets_dir / path).read_text().strip()

    def _consul_address(self) -> str:
        return self.stack.settings.consul_address

    def _redis_address(self, name: RedisName) -> tuple[str, int]:
        settings = self.stack.settings
        ports = {"redis-cache": settings.redis_cache_port, "redis-state": settings.redis_state_port}
        return "127.0.0.1", ports[name]

    def grant_admin(self, email: str) -> None:
        command = [sys.executable, "-m", "services.auth", "grant-admin", email]
        subprocess.run(command, env=self.stack.environment("auth"), cwd=REPO, check=True, timeout=60)

    def _stats_csv(self, service: str) -> str:
        with Runtime(self.stack.settings.run_dir / "haproxy.sock").session() as session:
            return session.send(command("show", "stat", f"svc_{service}", 4, -1))

    def _edge_log_text(self) -> str:
        return self.stack.log_file("requests").read_text(errors="replace")

    def reloads(self) -> int:
        # The master starts itself anew for a reload, and is deaf for that moment.
        master = Master(self.stack.settings.run_dir / "haproxy-master.sock")
        found: list[int] = []

        def answered() -> bool:
            with contextlib.suppress(Unreachable):
                found.append(master.info().reloads)
            return bool(found)

        eventually(answered, 5)
        return found[-1]

    def _servers_run(self) -> bool:
        return all(self.stack.pid(name) for name in INFRASTRUCTURE)

    def _wake_servers(self) -> None:
        self.stack.start(*(name for name in INFRASTRUCTURE if not self.stack.pid(name)))
        for name in INFRASTRUCTURE:
            self.stack.resume(name)

    def _wake(self, service: str) -> None:
        for member in self.instances(service):
            if member.pid:
                self.stack.resume(member.id)
