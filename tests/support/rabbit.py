"""A real RabbitMQ on free loopback ports, with the users, rights and exchanges that the stack gives it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stack.install.packages import search_path
from stack.run import processes
from stack.servers import rabbitmq
from tests.support.servers import Process, _folder, _retry_ports, _wait_for, accepts, free_ports


@dataclass
class RabbitServer:
    """Keeps what it knows when it is killed and started again."""

    node: rabbitmq.Node
    server: Process
    epmd: Process
    passwords: dict[str, str]

    def url(self, user: str = rabbitmq.OPERATOR) -> str:
        return rabbitmq.url(user, self.passwords[user], self.node.address)

    def start(self) -> None:
        self.server.start()
        _wait_for(self.server, self.node.accepts, 60.0)

    def kill(self) -> None:
        """SIGKILL. Erlang's port mapper goes on."""
        self.server.kill()

    def freeze(self) -> None:
        """Stop it where it stands: it neither answers nor closes anything."""
        processes.send(signal.SIGSTOP, processes.tree(self.server.pid))

    def thaw(self) -> None:
        processes.send(signal.SIGCONT, processes.tree(self.server.pid))


@contextlib.contextmanager
def rabbit(services: Sequence[str]) -> Iterator[RabbitServer]:
    """With a user for each of these services, and the operator's. Takes some seconds to start."""
    with _folder(None, "rabbit") as folder:
        passwords = {name: secrets.token_urlsafe(16) for name in (rabbitmq.OPERATOR, *services)}
        server = _retry_ports(lambda: _start(folder, passwords))
        try:
            yield server
        finally:
            server.server.stop(within_s=20)
            server.epmd.stop()


def _start(folder: Path, passwords: dict[str, str]) -> RabbitServer:
    port, dist, mapper = free_ports(3)
    node = rabbitmq.Node(folder / f"at-{port}", port, dist, mapper)
    node.configure(passwords)
    env = {"PATH": f"{search_path()}:{os.environ['PATH']}", **node.environment}
    epmd = Process(node.epmd_command, folder / "epmd.log", env=env)
    one = RabbitServer(node, Process(node.command, folder / "rabbitmq.log", env=env), epmd, passwords)
    try:
        epmd.start()
        _wait_for(epmd, lambda: accepts(mapper), 10.0)
        one.start()
    except BaseException:
        one.server.stop()
        epmd.stop()
        raise
    return one
