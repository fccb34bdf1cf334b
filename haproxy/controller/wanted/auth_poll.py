"""Documents of `auth` that the edge follows: asked of one live instance after the other, until one gives a good one."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import structlog

from haproxy.controller.config.model import Server
from haproxy.controller.metrics import Metrics

log = structlog.get_logger(__name__)
T = TypeVar("T")

SERVICE = "auth"
TIMEOUT_S = 2.0
_MAX_READY_BYTES = 65536


class AuthDocument(Generic[T]):
    """One document. auth away, or nothing good from any instance: None, reported once, and what was known stays."""

    def __init__(
        self,
        what: str,
        path: str,
        max_bytes: int,
        parse: Callable[[bytes], T],
        servers: Callable[[], Iterable[Server]],
        metrics: Metrics,
    ) -> None:
        self._what = what
        self._path = path
        self._max_bytes = max_bytes
        self._parse = parse
        self._servers = servers
        self._metrics = metrics
        self._failing = False

    def poll(self) -> T | None:
        problem = "no live instance"
        for server in self._servers():
            try:
                found = self._parse(_fetch(server, self._path, self._max_bytes))
            except Exception as error:  # whatever one instance sends, the next is asked
                problem = f"{server.name}: {error}"
                continue
            self._failing = False
            return found
        self._metrics.errors.labels(self._what).inc()
        if not self._failing:
            log.warning(f"{self._what} not polled, those at hand stay", problem=problem)
        self._failing = True
        return None


def _fetch(server: Server, path: str, max_bytes: int) -> bytes:
    """Raises OSError or http.client.HTTPException. First the instance has to say that it is `auth`: a port may have been reused."""
    connection = http.client.HTTPConnection(server.address, server.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        answer.read(_MAX_READY_BYTES)
        if answer.status != 200 or answer.getheader("X-Service") != SERVICE:
            raise http.client.HTTPException(f"{server.name} is no ready instance of {SERVICE}")
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(max_bytes + 1)
        if answer.status != 200 or len(body) > max_bytes:
            raise http.client.HTTPException(f"{server.name} answered {answer.status}, {len(body)} bytes")
        return body
    finally:
        connection.close()
