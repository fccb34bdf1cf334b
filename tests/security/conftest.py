"""One edge for all attacks: an instance behind routes that are locked, open, and stripped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from haproxy.controller.config.model import Backend, EdgeState
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import eventually
from tests.support.recorder import Upstream


@dataclass
class Target:
    """`send` answers the status of the first answer (0: none came) and leaves in `upstream` what got through."""

    edge: Edge
    upstream: Upstream

    def send(self, data: bytes, timeout_s: float = 3.0, quiet_s: float | None = None) -> int:
        self.upstream.requests.clear()
        self.upstream.heads.clear()
        answer = self.edge.raw(data, timeout_s=timeout_s, quiet_s=quiet_s)
        return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0

    def request(self, target: str, *headers: str, method: str = "GET") -> int:
        lines = [f"{method} {target} HTTP/1.1", "Host: edge.test", "Connection: close", *headers]
        return self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    @property
    def targets(self) -> list[str]:
        """The paths that the instance saw."""
        return [request.target for request in self.upstream.requests]


def routes(port: int) -> tuple[Backend, ...]:
    return (
        backend("locked", port, auth="jwt", check_identity=False),
        backend("open", port, check_identity=False),
        backend("plain", port, check_identity=False, strip=True, paths=("/api/plain", "/api/plain/inner")),
    )


@contextmanager
def target(alter: tuple[str, str] | None = None) -> Iterator[Target]:
    """An edge of its own, with a piece of its configuration replaced."""
    with Upstream("open") as upstream, edge(EdgeState(routes(upstream.port)), alter=alter) as running:
        yield Target(running, upstream)


@pytest.fixture(scope="session")
def running() -> Iterator[Target]:
    with target() as made:
        yield made


@pytest.fixture
def shared(running: Target) -> Target:
    """For attacks that leave nothing behind. Its instance is up: on a busy machine its checks run out of time now and then."""
    eventually(lambda: running.request("/api/open/x") == 200, 5)
    running.upstream.requests.clear()
    running.upstream.heads.clear()
    return running
