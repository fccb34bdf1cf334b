"""The edge as its own template renders it, in front of the bench's upstream."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bench.programs import MEASURED_CORE, pinned, program
from discovery.model import Auth, Route
from haproxy.controller.config.model import Backend, EdgeState, Server, VerifyKey
from haproxy.controller.config.template import prepare_files, render
from haproxy.controller.settings import EdgeSettings
from tests.support.servers import free_ports

KID = "bench"
# Counting stays on, refusing must not happen: a 429 is cheaper than an answer and would flatter the edge.
UNREACHED = 10_000_000


@dataclass(frozen=True)
class Edge:
    """A running edge. `pid` is HAProxy's master; `signing_key` makes tokens that it takes."""

    port: int
    pid: int
    settings: EdgeSettings
    signing_key: rsa.RSAPrivateKey

    def log_format(self) -> str:
        """The line of its configuration that says what it logs."""
        lines = self.settings.config_path.read_text().splitlines()
        return next(line.strip() for line in lines if line.strip().startswith("log-format "))


def edge_settings(folder: Path, **values: object) -> EdgeSettings:
    """Settings of an edge that lives in `folder` on free loopback ports and refuses no client for being fast."""
    http, https, stats, controller = free_ports(4)
    defaults: dict[str, object] = {
        "edge_bind_address": "127.0.0.1",
        "edge_http_port": http,
        "edge_https_port": https,
        "stats_port": stats,
        "controller_port": controller,
        "edge_dir": folder / "edge",
        "edge_run_dir": folder / "run",
        "edge_rate_source": UNREACHED,
        "edge_rate_subject": UNREACHED,
    }
    for path in (folder / "edge" / "jwt", folder / "run"):
        path.mkdir(parents=True, exist_ok=True)
    return EdgeSettings(**(defaults | values))  # type: ignore[arg-type]


def bearer(key: rsa.RSAPrivateKey) -> str:
    """An Authorization header's value with a token like auth's own, valid for an hour."""
    now = int(time.time())
    claims = {
        "iss": "breakwater",
        "aud": "breakwater-api",
        "sub": str(uuid.uuid4()),
        "scope": "user",
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "jti": uuid.uuid4().hex,
    }
    return "Bearer " + jwt.encode(claims, key, algorithm="RS256", headers={"kid": KID})


def _backend(name: str, auth: Auth, upstream_port: int) -> Backend:
    route = Route(
        service=name, paths=(f"/api/{name}",), auth=auth, check=f"/health/{name}", cache=name == "cached"
    )
    return Backend(route, (Server(f"{name}-1", "127.0.0.1", upstream_port),))


def _environment(settings: EdgeSettings) -> dict[str, str]:
    """The settings as environment variables, for the controller's own process."""
    values = settings.model_dump()
    return {name.upper(): str(value) for name, value in values.items() if value is not None}


def _initialise(settings: EdgeSettings) -> None:
    subprocess.run(
        [sys.executable, "-m", "haproxy.controller", "init"],
        env={**os.environ, **_environment(settings)},
        check=True,
        timeout=60,
    )


def _haproxy(settings: EdgeSettings) -> list[str]:
    """HAProxy's command line as the stack has it, on the measured core."""
    master = settings.edge_run_dir / "haproxy-master.sock"
    return pinned(
        MEASURED_CORE,
        ["haproxy", "-W", "-db", "-S", f"{master},mode,600", "-f", str(settings.edge_dir / "haproxy.cfg")],
    )


@contextlib.contextmanager
def generated_edge(folder: Path, upstream_port: int) -> Iterator[Edge]:
    """An edge with a public, a token-guarded and a cacheable route to the upstream, and no controller."""
    settings = edge_settings(folder)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = settings.edge_dir / "jwt" / f"{KID}.pem"
    pem.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    backends = (
        _backend("cached", "public", upstream_port),
        _backend("private", "jwt", upstream_port),
        _backend("public", "public", upstream_port),
    )
    state = EdgeState(backends, (VerifyKey(KID, str(pem)),))
    prepare_files(state, settings)
    settings.config_path.write_text(render(state, settings))
    with program(_haproxy(settings), folder / "edge.log", port=settings.edge_http_port) as process:
        yield Edge(settings.edge_http_port, process.pid, settings, key)


@contextlib.contextmanager
def controlled_edge(folder: Path, consul_address: str) -> Iterator[tuple[Edge, int]]:
    """An edge followed by its controller; yields it and the controller's pid."""
    settings = edge_settings(folder, consul_http_addr=consul_address)
    _initialise(settings)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    controller = [sys.executable, "-m", "haproxy.controller", "run"]
    with (
        program(_haproxy(settings), folder / "edge.log", port=settings.edge_http_port) as process,
        program(
            controller,
            folder / "controller.log",
            port=settings.controller_port,
            within_s=60,
            env=_environment(settings),
        ) as following,
    ):
        yield Edge(settings.edge_http_port, process.pid, settings, key), following.pid
