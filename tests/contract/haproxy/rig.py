"""One edge for tests: a real Consul, a real HAProxy, a real controller process, and instances that answer."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from haproxy.controller.app import initialise
from haproxy.controller.runtime.observed import ObservedServer
from haproxy.controller.runtime.socket import Runtime
from haproxy.controller.settings import EdgeSettings
from stack import http as calls
from tests.support.eventually import eventually, time_scale
from tests.support.recorder import Answer, Request, Upstream
from tests.support.servers import ConsulServer, Process, accepts, consul, free_ports

_numbers = itertools.count(1)


def fresh(kind: str) -> str:
    """The name of a service that no test before has used."""
    return f"{kind}{next(_numbers)}"


class Program(Upstream):
    """An instance in this process, from the start: answers its own name, or a document; `/slow` takes `slow_s`."""

    def __init__(self, service: str, name: str) -> None:
        super().__init__(service, handler=self._respond)
        self.name = name
        self.documents: dict[str, bytes] = {}
        self.slow_s = 1.0
        self.__enter__()

    @property
    def seen(self) -> int:
        """How many requests have come, without those for its health."""
        return sum(not request.target.startswith("/health") for request in tuple(self.requests))

    def close(self) -> None:
        self.__exit__()

    def _respond(self, request: Request) -> Answer:
        headers = {"X-Service": self.service}
        if request.target.startswith("/health"):
            return Answer(200 if self.ready else 503, headers=headers)
        if request.target.endswith("/slow"):
            time.sleep(self.slow_s)
        return Answer(body=self.documents.get(request.target, self.name.encode()), headers=headers)


def public(service: str, **more: str) -> dict[str, str]:
    """The metadata of a public route `/api/<service>`; `more` without `edge-`."""
    own = {f"edge-{key}": value for key, value in more.items()}
    return {"edge-path": f"/api/{service}", "edge-auth": "public", **own}


@dataclass
class Edge:
    """The running parts. Services are registered past our own library, as a program in any language would."""

    consul: ConsulServer
    env: dict[str, str]
    folder: Path
    haproxy: Process
    controller: Process
    settings: EdgeSettings
    programs: list[Program] = field(default_factory=list)

    # -- instances

    def instance(self, service: str, name: str, meta: dict[str, str] | None = None) -> Program:
        """Start an instance and register it, passing."""
        program = Program(service, name)
        self.programs.append(program)
        self.register(service, name, program.port, public(service) if meta is None else meta)
        return program

    def fleet(self, service: str, count: int = 2) -> list[Program]:
        """Instances `<service>-1`, `<service>-2` …, all of which answer."""
        started = [self.instance(service, f"{service}-{number}") for number in range(1, count + 1)]
        names = {program.name for program in started}
        eventually(lambda: set(self.servers(service)) == names, 5)
        self.serves(f"/api/{service}", names)
        return started

    def register(
        self,
        service: str,
        name: str,
        port: int,
        meta: dict[str, str],
        address: str = "127.0.0.1",
        status: str = "passing",
    ) -> None:
        check = {"CheckID": f"ttl:{name}", "TTL": "1h", "Status": status}
        body = {"Name": service, "ID": name, "Address": address, "Port": port, "Meta": meta, "Check": check}
        self.consul.call("PUT", "/v1/agent/service/register", body)

    def deregister(self, name: str) -> None:
        self.consul.call("PUT", f"/v1/agent/service/deregister/{quote(name, safe='')}")

    def check(self, name: str, status: str) -> None:
        """`pass`, `warn` or `fail` the instance's check."""
        self.consul.call("PUT", f"/v1/agent/check/{status}/ttl:{name}")

    # -- looking

    def get(self, path: str, timeout_s: float = 5.0) -> tuple[int, str]:
        """One request on a connection of its own: status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.settings.edge_http_port, timeout=timeout_s)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def answers(self, path: str, count: int = 12) -> set[str]:
        """The instances that answer `count` requests; statuses other than 200 as text."""
        found = [self.get(path) for _ in range(count)]
        return {body if status == 200 else str(status) for status, body in found}

    def servers(self, service: str) -> dict[str, ObservedServer]:
        with Runtime(self.settings.runtime_socket).session() as session:
            return session.servers(f"svc_{service}") or {}

    def metric(self, name: str, default: float = 0.0) -> float:
        """A sample of the controller's metrics, by its full name with labels."""
        text = self._metrics()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else default

    def reloads(self) -> float:
        """All reloads, of whatever reason, once what is under way is done."""
        eventually(lambda: self.metric("breakwater_controller_in_step") == 1, 10)
        found = re.findall(r"^breakwater_controller_reloads_total\{.*\} (\S+)$", self._metrics(), re.M)
        return sum(map(float, found))

    def _metrics(self) -> str:
        return calls.call(f"127.0.0.1:{self.settings.controller_port}", "GET", "/metrics").text

    def owners(self) -> dict[str, str]:
        """What the edges have agreed on; raises when there is nothing."""
        found = self.consul.call("GET", "/v1/kv/edge/owners?raw")
        assert isinstance(found, dict)
        return found

    def verdict(self, service: str, name: str = "edge") -> dict[str, Any]:
        """The verdict in Consul's KV; raises when there is none."""
        found = self.consul.call("GET", f"/v1/kv/edge/status/{name}/{service}?raw")
        assert isinstance(found, dict)
        return found

    def verdict_keys(self) -> list[str]:
        found = self.consul.call("GET", "/v1/kv/edge/status/edge/?keys")
        assert isinstance(found, list)
        return found

    def put(self, key: str, document: object) -> None:
        self.consul.call("PUT", f"/v1/kv/{key}", document)

    # -- life

    def serves(self, path: str, names: set[str], within_s: float = 5.0) -> None:
        """Wait until exactly these answer."""
        eventually(lambda: self.answers(path) == names, within_s)

    def restore(self) -> None:
        """What runs no more is started again."""
        if not self.haproxy.running:
            self.start_haproxy()
        if not self.controller.running:
            self.start_controller()

    def start_haproxy(self) -> None:
        # The worker of a master that was killed may still be listening: it must not be taken for the new one.
        eventually(lambda: not accepts(self.settings.edge_http_port), 10)
        self.haproxy.start()
        eventually(lambda: accepts(self.settings.edge_http_port), 10)

    def start_controller(self) -> None:
        self.controller.start()
        eventually(self._followed, 20)
        self.controller.must_run()

    def _followed(self) -> bool:
        if not self.controller.running:
            return True
        return self.metric("breakwater_controller_in_step") == 1

    @contextlib.contextmanager
    def second_controller(self, name: str) -> Iterator[Process]:
        """Another edge's controller on the same Consul, with a disk of its own; there is no HAProxy beside it."""
        own = {
            "EDGE_NAME": name,
            "EDGE_DIR": str(self.folder / name),
            "EDGE_RUN_DIR": str(self.folder / f"{name}-run"),
            "CONTROLLER_PORT": str(free_ports(1)[0]),
        }
        argv, log = [sys.executable, "-m", "haproxy.controller", "run"], self.folder / f"{name}.log"
        process = Process(argv, log, env=self.env | own)
        process.start()
        try:
            yield process
        finally:
            process.stop()

    def cli(self, command: str) -> Process:
        """Run another command of the controller to its end; its output is in `log`."""
        log = self.folder / f"{command}-{time.monotonic_ns()}.log"
        process = Process([sys.executable, "-m", "haproxy.controller", command], log, env=self.env)
        process.start()
        assert process.popen is not None
        process.popen.wait(timeout=30 * time_scale())
        return process

    @property
    def log(self) -> str:
        return self.controller.log.read_text(errors="replace")


@contextlib.contextmanager
def edge(start: bool = True, **variables: str) -> Iterator[Edge]:
    """A whole edge on free ports. `variables` go into the controller's environment."""
    with (
        tempfile.TemporaryDirectory(prefix="edge-", ignore_cleanup_errors=True) as path,
        consul() as server,
    ):
        folder = Path(path)
        made = _make(folder, server, variables)
        try:
            initialise(made.settings)
            made.start_haproxy()
            if start:
                made.start_controller()
            yield made
        finally:
            made.controller.stop()
            made.haproxy.stop()
            for program in made.programs:
                program.close()


def _make(folder: Path, server: ConsulServer, variables: dict[str, str]) -> Edge:
    http_port, https_port, stats, metrics = free_ports(4)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("EDGE_", "CONSUL_"))}
    own = {
        "EDGE_BIND_ADDRESS": "127.0.0.1",
        "EDGE_HTTP_PORT": str(http_port),
        "EDGE_HTTPS_PORT": str(https_port),
        "STATS_PORT": str(stats),
        "CONTROLLER_PORT": str(metrics),
        "EDGE_DIR": str(folder / "edge"),
        "EDGE_RUN_DIR": str(folder / "run"),
        "EDGE_CONTROL_PORTS": str(server.http_port),
        "EDGE_RATE_SOURCE": "0",
        "EDGE_RATE_SUBJECT": "0",
        "EDGE_NAME": "edge",
        "CONSUL_HTTP_ADDR": server.address,
        **variables,
    }
    settings = EdgeSettings.model_validate({key.lower(): value for key, value in own.items()})
    master = f"{settings.master_socket},mode,600"
    argv = ["haproxy", "-W", "-db", "-S", master, "-f", str(settings.config_path)]
    env = clean | own
    controller = Process(
        [sys.executable, "-m", "haproxy.controller", "run"], folder / "controller.log", env=env
    )
    return Edge(server, env, folder, Process(argv, folder / "haproxy.log"), controller, settings)
