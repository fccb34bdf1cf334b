"""A real HAProxy on a rendered configuration, without a controller or Consul: what the template itself does."""

from __future__ import annotations

import contextlib
import csv
import io
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from discovery.model import Route
from haproxy.controller.config.model import Backend, EdgeState, Server
from haproxy.controller.config.template import prepare_files, render
from haproxy.controller.settings import EdgeSettings
from tests.support.servers import HAProxyServer, free_ports, haproxy
from tests.support.wire import Reply, Wire


def backend(service: str, *ports: int, **route: Any) -> Backend:
    """A backend of instances on loopback ports; public, under /api/<service>, unless `route` says otherwise."""
    fields = {"paths": (f"/api/{service}",), "auth": "public"} | route
    servers = tuple(Server(f"{service}-{n}", "127.0.0.1", port) for n, port in enumerate(ports, 1))
    return Backend(Route(service, **fields), servers)


CROSSED = (
    backend("left", paths=("/api/left", "/api/right/in")),
    backend("right", paths=("/api/right", "/api/left/in")),
)
"""Each inside the other: no order of ACLs would be right, and the configuration dispatches by a map."""


@dataclass
class Edge:
    """A running edge."""

    settings: EdgeSettings
    server: HAProxyServer

    @property
    def port(self) -> int:
        return self.settings.edge_http_port

    def raw(
        self, data: bytes, *, timeout_s: float = 3.0, quiet_s: float | None = None, port: int | None = None
    ) -> bytes:
        """Send these bytes on a connection of their own, and return everything that comes until it ends or falls silent.

        It is silent after `timeout_s`, or, once something has come, after `quiet_s`.
        """
        with socket.create_connection(("127.0.0.1", port or self.port), timeout=timeout_s) as connection:
            connection.sendall(data)
            answer = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while part := connection.recv(65536):
                    answer += part
                    connection.settimeout(quiet_s or timeout_s)
            return answer

    def get(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Reply:
        """One request on a connection of its own; underscores in header names stand for `-`."""
        lines = [f"{method} {path} HTTP/1.1", "Host: edge.test", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if body or method not in ("GET", "HEAD"):
            lines.append(f"Content-Length: {len(body)}")
        wire = Wire("127.0.0.1", self.port, 10.0)
        try:
            request = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
            return wire.exchange(request, head=method == "HEAD")
        finally:
            wire.close()

    def command(self, line: str) -> str:
        """One Runtime API command."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.settings.runtime_socket))
            connection.sendall(line.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def stat(self, proxy: str, name: str) -> dict[str, str]:
        """One line of `show stat`; raises StopIteration when there is none."""
        rows = csv.DictReader(io.StringIO(self.command("show stat").removeprefix("# ")))
        return next(row for row in rows if (row["pxname"], row["svname"]) == (proxy, name))


def valid(path: Path) -> str:
    """What `haproxy -c` says against a configuration; empty when it takes it without an alert or a warning."""
    result = subprocess.run(["haproxy", "-c", "-f", str(path)], capture_output=True, text=True, timeout=60)
    fine = ("[NOTICE]", "Can't open global server state file")  # there is none before the first reload
    complaints = [x for x in result.stderr.splitlines() if x.strip() and not any(f in x for f in fine)]
    return "\n".join(complaints) if result.returncode or complaints else ""


@contextlib.contextmanager
def edge(state: EdgeState, *, alter: tuple[str, str] | None = None, **settings: Any) -> Iterator[Edge]:
    """HAProxy on the rendered state. `alter` replaces a piece of the configuration: what a line is worth shows without it."""
    http, https, stats = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        made = EdgeSettings(
            **{
                "edge_bind_address": "127.0.0.1",
                "edge_http_port": http,
                "edge_https_port": https,
                "stats_port": stats,
                "edge_dir": Path(folder) / "edge",
                "edge_run_dir": Path(folder),
                "edge_rate_source": 0,
                "edge_rate_subject": 0,
            }
            | settings
        )
        prepare_files(state, made)
        text = render(state, made)
        if alter is not None:
            assert alter[0] in text, f"not in the configuration: {alter[0]!r}"
            text = text.replace(*alter)
        made.config_path.write_text(text)
        with haproxy(made.config_path, wait_port=http) as server:
            yield Edge(made, server)
