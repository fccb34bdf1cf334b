"""Real servers for tests, on free loopback ports, each as a context manager that leaves no process behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from haproxy.controller.runtime.socket import Master
from stack import http
from stack.run.ports import free_ports as free_ports
from tests.support import prefork
from tests.support.eventually import eventually


def ask_consul(address: str, method: str, path: str, body: object = None, *, token: str | None = None) -> Any:
    """One call past our own library, so that tests do not check it with itself. Returns the JSON, or None.

    Raises requests.HTTPError for an error status.
    """
    headers = {"X-Consul-Token": token} if token else {}
    answer = http.call(address, method, path, body=body, headers=headers, timeout_s=10)
    answer.raise_for_status()
    return answer.json() if answer.text.strip() else None


def free_port() -> int:
    """A TCP port that was free a moment ago, and that no outgoing connection takes by chance meanwhile."""
    return free_ports(1)[0]


@dataclass
class Process:
    """A started program in a process group of its own; `log` is where its output goes."""

    argv: Sequence[str]
    log: Path
    popen: subprocess.Popen[bytes] | prefork.Forked | None = None
    env: dict[str, str] | None = None

    @property
    def pid(self) -> int:
        assert self.popen is not None, "not started"
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def start(self) -> None:
        if prefork.forks(self.argv):
            env = os.environ if self.env is None else self.env
            self.popen = prefork.start(self.argv, self.log, env)
            return
        with self.log.open("ab") as out:
            self.popen = subprocess.Popen(
                self.argv, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=self.env
            )

    def signal(self, number: int) -> None:
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the whole group, and wait until it has gone."""
        if self.popen is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.popen.wait(timeout=10)

    def stop(self, within_s: float = 5.0) -> None:
        """SIGTERM, then SIGKILL for what is left."""
        if self.running:
            assert self.popen is not None
            with contextlib.suppress(ProcessLookupError):
                self.signal(signal.SIGCONT)
                self.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout=within_s)
        self.kill()

    def must_run(self) -> None:
        """Raise AssertionError with the log when the process has ended."""
        if not self.running:
            raise ProcessEnded(f"{self.argv[0]} ended: {self.log.read_text(errors='replace')[-3000:]}")


class ProcessEnded(AssertionError):
    """A server ended while it was waited for."""


@dataclass
class ConsulServer:
    """A Consul server: what it knew is gone after `kill()` and `start()`, unless it was given a `data_dir`."""

    http_port: int
    process: Process
    token: str | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    def call(self, method: str, path: str, body: object = None, token: str | None = None) -> object:
        return ask_consul(self.address, method, path, body, token=token or self.token)

    def start(self) -> None:
        self.process.start()
        self.wait()

    def wait(self, within_s: float = 20.0) -> None:
        """Until it has a leader and its own node stands in the catalog."""

        def serves() -> bool:
            # With ACLs even the nodes answer needs the token; an empty list means "not yet".
            return bool(self.call("GET", "/v1/catalog/nodes"))

        _wait_for(self.process, serves, within_s)

    def kill(self) -> None:
        self.process.kill()


def _wait_for(process: Process, predicate, within_s: float) -> None:  # type: ignore[no-untyped-def]
    def alive_and_true() -> bool:
        try:
            return bool(predicate())
        except Exception:
            return not process.running

    eventually(alive_and_true, within_s)
    process.must_run()


@contextlib.contextmanager
def consul(
    tmp: Path | None = None, acl: bool = False, config: dict[str, object] | None = None
) -> Iterator[ConsulServer]:
    """A single Consul server with a leader. With `acl`, default deny, and `token` is the management token."""
    with _folder(tmp, "consul") as folder:
        server = _retry_ports(lambda: _start_consul(folder, acl, config or {}))
        try:
            yield server
        finally:
            server.process.stop()


def _start_consul(folder: Path, acl: bool, extra: dict[str, object]) -> ConsulServer:
    http, dns, rpc, serf = free_ports(4)
    token = str(uuid.uuid4()) if acl else None
    settings: dict[str, object] = {
        "bind_addr": "127.0.0.1",
        "client_addr": "127.0.0.1",
        "node_name": "node-1",
        "log_level": "INFO",
        "disable_update_check": True,
        "ports": {"http": http, "dns": dns, "server": rpc, "serf_lan": serf, "serf_wan": -1, "grpc": -1},
        "limits": {"http_max_conns_per_client": 2000},
        "http_config": {"block_endpoints": ["/v1/txn"]},  # as in consul/common.hcl
        **extra,
    }
    if token:
        settings["acl"] = {
            "enabled": True,
            "default_policy": "deny",
            "tokens": {"master": token, "agent": token},
        }
    file = folder / "consul.json"
    file.write_text(json.dumps(settings))
    env = {key: value for key, value in os.environ.items() if not key.startswith("CONSUL_")}
    kind = ["-server", "-bootstrap"] if "data_dir" in extra else ["-dev"]
    process = Process(["consul", "agent", *kind, f"-config-file={file}"], folder / "consul.log", env=env)
    server = ConsulServer(http, process, token)
    try:
        server.start()
    except BaseException:
        process.stop()
        raise
    return server


@dataclass
class RedisServer:
    """A Redis without persistence."""

    port: int
    process: Process

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.process.start()
        _wait_for(self.process, lambda: accepts(self.port), 10.0)

    def kill(self) -> None:
        self.process.kill()


@contextlib.contextmanager
def redis(args: Sequence[str] = ()) -> Iterator[RedisServer]:
    """A redis-server in memory; `args` are further command line options (`--maxmemory`, `16mb`, …)."""
    with _folder(None, "redis") as folder:

        def start() -> RedisServer:
            port = free_port()
            argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
            argv += ["--save", "", "--appendonly", "no", "--daemonize", "no", *args]
            server = RedisServer(port, Process(argv, folder / "redis.log"))
            try:
                server.start()
            except BaseException:
                server.process.stop()
                raise
            return server

        server = _retry_ports(start)
        try:
            yield server
        finally:
            server.process.stop()


@dataclass
class HAProxyServer:
    """HAProxy as master and worker. `master_socket` is the master CLI (for reloads)."""

    config: Path
    master_socket: Path
    process: Process
    folder: Path = field(default_factory=Path)

    @property
    def log_text(self) -> str:
        return self.process.log.read_text(errors="replace")


@contextlib.contextmanager
def haproxy(
    config: Path | str, tmp: Path | None = None, wait_port: int | None = None
) -> Iterator[HAProxyServer]:
    """HAProxy on a configuration (a file, or its text), as supervisord runs it; waits for `wait_port` to accept."""
    with _folder(tmp, "haproxy") as folder:
        if isinstance(config, str):
            file = folder / "haproxy.cfg"
            file.write_text(config)
            config = file
        master = folder / "haproxy-master.sock"
        argv = ["haproxy", "-W", "-db", "-S", f"{master},mode,600", "-f", str(config)]
        server = HAProxyServer(config, master, Process(argv, folder / "haproxy.log"), folder)
        server.process.start()
        try:
            # The master starts itself anew once its worker runs, and is deaf for that moment.
            _wait_for(server.process, lambda: Master(master).info().workers, 10.0)
            _wait_for(server.process, lambda: wait_port is None or accepts(wait_port), 10.0)
            yield server
        finally:
            server.process.stop()


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts TCP connections there."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


@contextlib.contextmanager
def _folder(parent: Path | None, name: str) -> Iterator[Path]:
    """A folder for one server. Directly under the system's temporary folder: Unix socket paths end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=parent, ignore_cleanup_errors=True) as path:
        yield Path(path)


def _retry_ports(start):  # type: ignore[no-untyped-def]
    """Another process may take a free port before our server binds it: try three times."""
    for _ in range(2):
        with contextlib.suppress(ProcessEnded):
            return start()
    return start()
