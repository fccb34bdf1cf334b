"""The fleet as containers of docker-compose.yml. Docker's engine is asked through its own interface, which takes milliseconds;
only what is Compose's own business is left to its command."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import os
import subprocess
import tarfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from docker.errors import APIError
from docker.models.containers import Container

import docker
from stack import http
from stack.settings import REPO
from tests.support.accounts import new_account, says_ready
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, Member, RedisName
from tests.support.servers import free_ports

PORT = 8000
"""Every instance's, in its own container."""
SERVERS = (
    "consul",
    "consul-tokens",
    "haproxy",
    "controller",
    "redis-cache",
    "redis-state",
    "postgres",
    "mail",
)
PROJECT, SERVICE = "com.docker.compose.project", "com.docker.compose.service"


class ContainerFleet(Fleet):
    """A `Fleet` over one Compose project."""

    def __init__(self, project: str, subnet: str, **environment: str) -> None:
        network = ipaddress.ip_network(subnet)
        self.edge_port, self.edge_https_port, self.stats_port, consul = free_ports(4)
        self.project = project
        self.host = str(network[1])
        self.environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": project,
            "COMPOSE_ANSI": "never",
            "EDGE_BIND_ADDRESS": "0.0.0.0",  # as it is by default, whatever the shell says
            "EDGE_HTTP_PORT": str(self.edge_port),
            "EDGE_HTTPS_PORT": str(self.edge_https_port),
            "STATS_PORT": str(self.stats_port),
            "CONSUL_HTTP_PORT": str(consul),
            "FLEET_SUBNET": subnet,
            "FLEET_GATEWAY": self.host,
            "FLEET_RANGE": str(list(network.subnets())[1]),
            # What the tests run themselves stands beside the containers, on the machine.
            "EDGE_ALLOWED_NETWORKS": subnet,
            **environment,
        }
        self.docker = docker.from_env(timeout=60)
        self._consul = f"127.0.0.1:{consul}"
        self._secrets: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._networks: dict[str, list[str]] = {}

    # -- the whole

    def compose(self, *words: str, timeout_s: float = 300) -> str:
        """What `docker compose …` prints. AssertionError, with all it said, when it fails."""
        argv = ["docker", "compose", "--progress", "plain", *words]
        done = subprocess.run(
            argv,
            cwd=REPO,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        assert not done.returncode, f"{' '.join(argv)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout

    def file(self) -> dict[str, Any]:
        """The Compose file with all its variables filled in."""
        found: dict[str, Any] = json.loads(self.compose("config", "--format", "json"))
        return found

    def up(self) -> None:
        self.compose("build", timeout_s=900)
        self.compose("up", "--detach", "--no-build", timeout_s=300)
        services = self.file()["services"]
        self._counts = {
            name: one.get("deploy", {}).get("replicas", 1)
            for name, one in services.items()
            if "/secrets" in {mount["target"] for mount in one.get("volumes", ())}
            and name not in {*SERVERS, "edge-init"}
        }
        self._networks = {name: list(one.get("networks", ())) for name, one in services.items()}
        self.wait_healthy(120)
        # The edge takes no token before it has auth's keys, a second after auth is there.
        first = new_account(self.edge_port)
        eventually(lambda: first.ask("GET", f"/api/users/{first.id}").status == 200, 20)

    def down(self) -> None:
        """All of it. An engine under whose containers networks were taken away may refuse once: it says so, and needs a hand."""
        words = ("--profile", "*", "down", "--volumes", "--remove-orphans")
        with contextlib.suppress(APIError):  # one that has just ended by itself
            self._together("kill", [one for name in (*SERVERS, *self._counts) for one in self._running(name)])
        try:
            self.compose(*words, timeout_s=180)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            warnings.warn(str(error)[-2000:], stacklevel=2)
            self._clear()
            self._finish(words)
        finally:
            self.docker.close()

    def _finish(self, words: Sequence[str]) -> None:
        """Once more. An endpoint without a container holds its network until the engine restarts: Docker's own fault."""
        try:
            self.compose(*words, timeout_s=180)
        except AssertionError as error:
            if "has active endpoints" not in str(error):
                raise
            warnings.warn(str(error)[-500:], stacklevel=2)

    def _clear(self) -> None:
        """Containers without their leave, and what is left of them on the networks."""
        of_project = {"label": f"{PROJECT}={self.project}"}
        for one in self.docker.containers.list(all=True, filters=of_project):
            one.remove(force=True)
        for network in self.docker.networks.list(filters=of_project):
            network.reload()
            for end in network.attrs["Containers"].values():
                network.disconnect(end["Name"], force=True)

    def services(self) -> Mapping[str, int]:
        return self._counts

    # -- containers

    def containers(self, service: str) -> list[Container]:
        """Of one service of the file, by their numbers in it."""
        labels = [f"{PROJECT}={self.project}", f"{SERVICE}={service}"]
        found = self.docker.containers.list(all=True, filters={"label": labels})
        return sorted(found, key=lambda one: int(one.labels["com.docker.compose.container-number"]))

    def container(self, service: str) -> Container:
        """The only one of a server."""
        (found,) = self.containers(service)
        return found

    def address(self, container: Container, network: str) -> str:
        """Of a container on one of the file's networks; empty where it is not on it."""
        ends = container.attrs["NetworkSettings"]["Networks"]
        return str(ends.get(f"{self.project}_{network}", {}).get("IPAddress", ""))

    def leave(self, container: Container, network: str) -> None:
        """Take a container off one of the file's networks (`docker network disconnect`)."""
        self.docker.networks.get(f"{self.project}_{network}").disconnect(container)

    def join(self, container: Container, network: str, address: str | None = None) -> None:
        """Put it back, under the name that the file gives it; the address is Docker's choice where none is given."""
        aliases = [container.labels[SERVICE]]
        self.docker.networks.get(f"{self.project}_{network}").connect(
            container, aliases=aliases, ipv4_address=address
        )

    def instances(self, service: str) -> list[Member]:
        return [self._member(service, one) for one in self.containers(service)]

    def of(self, member: Member) -> Container:
        """The container of an instance."""
        return self.docker.containers.get(member.id.rpartition("-")[2])

    def _member(self, service: str, one: Container) -> Member:
        pid = one.attrs["State"]["Pid"]
        return Member(service, f"{service}-{one.id[:12]}", PORT, pid, self.address(one, "fleet"))

    def ready(self, member: Member) -> bool:
        # Its address of now: one that was stopped has none, and may get another.
        host = self.address(self.of(member), "fleet")
        return bool(host) and says_ready(host, member.port)

    def kill(self, member: Member) -> None:
        # From within, as a crash: what `docker kill` has ended, Docker does not start again. Its first process, which
        # nothing can kill from within, goes with the others.
        self.of(member).exec_run(["python", "-I", "-S", "-c", "import os; os.kill(-1, 9)"], detach=True)
        eventually(lambda: self._pid(member) != member.pid, 10, 0.005)

    def _pid(self, member: Member) -> int:
        return int(self.of(member).attrs["State"]["Pid"])

    def hang(self, member: Member) -> AbstractContextManager[None]:
        return self._paused(self.of(member))

    @contextlib.contextmanager
    def _paused(self, container: Container) -> Iterator[None]:
        container.pause()
        try:
            yield
        finally:
            container.unpause()

    def _running(self, service: str) -> list[Container]:
        return [one for one in self.containers(service) if one.status == "running"]

    def stop(self, service: str) -> None:
        self._together("stop", self._running(service))

    def crash(self, service: str) -> None:
        self._together("kill", self._running(service))

    def stop_member(self, member: Member) -> None:
        self._together("stop", [self.of(member)])

    def restart(self, *services: str) -> None:
        """Stop all their containers at once and start them again; returns when they run."""
        found = [one for service in services for one in self._running(service)]
        self._together("stop", found)
        self._together("start", [one for one in found if one.labels[SERVICE] in SERVERS])
        self._together("start", found)

    @staticmethod
    def _together(action: str, containers: Sequence[Container]) -> None:
        """Stop, kill or start all of these at once."""
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda one: getattr(one, action)(), containers))

    def start(self, service: str) -> None:
        self._together("start", [one for one in self.containers(service) if one.status != "running"])

    def scale(self, service: str, count: int) -> None:
        self.compose(
            "up",
            "--detach",
            "--no-deps",
            "--no-build",
            "--no-recreate",
            "--scale",
            f"{service}={count}",
            service,
        )

    # -- servers

    def kill_server(self, name: str) -> None:
        self.container(name).kill()

    def hang_server(self, name: str) -> AbstractContextManager[None]:
        return self._paused(self.container(name))

    def start_server(self, name: str) -> None:
        self.container(name).start()

    def empty_consul(self) -> None:
        wipe = "import shutil; shutil.rmtree('/state/consul/data')"
        self.compose("run", "--rm", "--no-deps", "init", "python", "-c", wipe)
        self.compose("run", "--rm", "--no-deps", "init")

    def server_pid(self, name: str) -> int:
        return int(self.container(name).attrs["State"]["Pid"])

    def secret(self, path: str) -> str:
        if path not in self._secrets:
            self._secrets = self.secrets()
        return self._secrets[path]

    def secrets(self) -> dict[str, str]:
        """All that is in the volume which no running container has: path → text."""
        # Never started: the engine reads a volume of a container that stands still as well.
        holder = self.docker.containers.create(
            self.container("consul-tokens").attrs["Config"]["Image"],
            ["true"],
            volumes={f"{self.project}_secrets": {"bind": "/vault", "mode": "ro"}},
            labels={PROJECT: "", SERVICE: ""},
        )
        try:
            packed = b"".join(holder.get_archive("/vault")[0])
        finally:
            holder.remove(force=True)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            return {
                member.name.removeprefix("vault/"): file.read().decode().strip()
                for member in archive
                if member.isfile() and (file := archive.extractfile(member)) is not None
            }

    def _redis_address(self, name: RedisName) -> tuple[str, int]:
        return self.address(self.container(name), name.removeprefix("redis-")) or "192.0.2.1", 6379

    # -- questions

    def _consul_address(self) -> str:
        return self._consul

    def grant_admin(self, email: str) -> None:
        done = self.containers("auth")[0].exec_run(["python", "-m", "services.auth", "grant-admin", email])
        assert done.exit_code == 0, done.output

    def _stats_csv(self, service: str) -> str:
        # The page, not the Runtime API: its socket is in a volume, and a command in a container takes too long.
        return http.call(f"127.0.0.1:{self.stats_port}", "GET", "/stats;csv").text

    def _edge_log_text(self) -> str:
        # The controller writes down the requests, where no file is named for them.
        logs = [self.container(name).logs(tail=50_000) for name in ("haproxy", "controller")]
        return b"".join(logs).decode(errors="replace")

    def reloads(self) -> int:
        return self.container("haproxy").logs().count(b"Reloading HAProxy")

    def _servers_run(self) -> bool:
        return all(self.container(name).status == "running" for name in SERVERS)

    def repair(self) -> None:
        for service, networks in self._networks.items():
            for one in self.containers(service):
                for network in networks:
                    if f"{self.project}_{network}" not in one.attrs["NetworkSettings"]["Networks"]:
                        self.join(one, network)
        super().repair()

    def _wake_servers(self) -> None:
        for name in SERVERS:
            self._wake(name)
            self.start(name)

    def _wake(self, service: str) -> None:
        for one in self.containers(service):
            if one.status == "paused":
                one.unpause()
