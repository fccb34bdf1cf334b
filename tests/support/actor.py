"""A tiny service whose behaviour a test changes while it runs: it stands in for instances that misbehave."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.scripted import Handler, upstream

GUEST_HOST = "TEST_GUEST_HOST"
"""The variable in which a fleet of containers says where its servers find programs of this machine."""


def guest_host() -> str:
    """The address on which the fleet finds what a test runs itself."""
    return os.environ.get(GUEST_HOST, "127.0.0.1")


@dataclass
class Actor:
    """An HTTP server, on loopback where the fleet is processes. Change `status` at any time; `requests` counts what is not a
    health check."""

    service: str
    instance_id: str
    port: int = 0
    host: str = field(default_factory=guest_host)
    status: int = 200
    requests: int = 0
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    _running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def listen(self) -> None:
        """Begin to listen, on `port` or, where that is 0, on a free one."""
        self.port = self._running.enter_context(upstream(self._answer, self.port, self.host)).port

    def close(self) -> None:
        """Stop listening and hang up, as a process that ends does."""
        self._running.close()

    def _answer(self, handler: Handler) -> None:
        if handler.path.startswith("/health/"):
            handler.answer(X_Service=self.service)
            return
        self.requests += 1
        if len(self.seen) < 1000:
            self.seen.append((handler.command, handler.path, handler.seen.headers))
        handler.answer(self.status, b'{"data":{"from":"actor"}}', Content_Type="application/json")


@contextlib.contextmanager
def actor(service: str, instance_id: str, *, port: int = 0) -> Iterator[Actor]:
    """An actor that listens."""
    one = Actor(service, instance_id, port)
    one.listen()
    try:
        yield one
    finally:
        one.close()
