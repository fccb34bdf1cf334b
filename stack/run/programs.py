"""What supervisord runs: one program for each server of the stack and for each instance, with its environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stack.errors import StackError
from stack.fleet import ServiceSpec
from stack.install.packages import search_path
from stack.servers import consul_agent, rabbitmq, redis_servers
from stack.servers.vault import Vault
from stack.settings import REPO, StackSettings

PASSED_PREFIXES = (
    "EDGE_",
    "AUTH_",
    "GATEWAY_",
    "LOG_",
    "DRAIN_",
    "DATABASE_",
    "SERVICE_",
    "GUNICORN_",
    "WORKER",
    "THREADS",
    "OTEL_",
    "SMTP_",
    "MAIL_FROM",
)
PASSED_NAMES = ("LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")

DRAIN_WAIT_S = 30
"""How long an instance may take to leave after SIGTERM before SIGKILL: more than DRAIN_DELAY_S + DRAIN_TIMEOUT_S."""


@dataclass(frozen=True, slots=True)
class Program:
    """One supervised process."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_wait_s: int = 10


def find_binary(name: str) -> str:
    """The program's path. Raises StackError when it is not installed."""
    found = shutil.which(name, path=search_path())
    if found is None:
        raise StackError(f"{name} is not installed", "`make up` installs what is missing")
    return found


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the caller's environment reaches the servers: settings of ours, no credentials of the caller's shell."""
    return {
        name: value
        for name, value in environment.items()
        if name in PASSED_NAMES or name.startswith(PASSED_PREFIXES)
    }


class Catalogue:
    """The programs of one stack. `extra` is environment for every one of them, `per_service` for the instances of one."""

    def __init__(
        self,
        settings: StackSettings,
        vault: Vault,
        extra: Mapping[str, str],
        per_service: Mapping[str, Mapping[str, str]],
    ) -> None:
        self.settings = settings
        self.vault = vault
        self.extra = extra
        self.per_service = per_service

    def base_environment(self) -> dict[str, str]:
        """What every program of the stack starts from."""
        settings = self.settings
        return {
            **passed_on(os.environ),
            "PATH": search_path(),
            "HOME": str(settings.var / "home"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(REPO),
            # What `stack.launch` says, so that stacks of one checkout share what one has compiled.
            "PYTHONPYCACHEPREFIX": os.environ.get("PYTHONPYCACHEPREFIX")
            or str(settings.var / "cache" / "pycache"),
            "PYTHONUNBUFFERED": "1",
            "BREAKWATER_VAR": str(settings.var),
            "CONSUL_HTTP_ADDR": settings.consul_address,
            "DATA_DIR": str(settings.data_dir),
            **self.extra,
        }

    def infrastructure(self) -> list[Program]:
        """In the order in which they start."""
        edge = (self._haproxy(), self._controller())
        stores = (*self._redis(), *self._rabbitmq())
        return [self._consul(), self._acl(), *stores, self._mail(), *edge]

    def instance(self, spec: ServiceSpec, number: int, port: int) -> Program:
        name = f"{spec.name}-{number}"
        environment = {
            **spec.environment,
            **self.service_environment(spec.name),
            "INSTANCE_ID": name,
            "HOST": "127.0.0.1",
            "PORT": str(port),
        }
        argv = (sys.executable, "-m", spec.module)
        return Program(name, argv, environment, DRAIN_WAIT_S)

    def service_environment(self, service: str) -> dict[str, str]:
        """For any process that registers as `service`: its identity to Consul, to auth and to Redis."""
        settings, vault = self.settings, self.vault
        environment = {
            "CONSUL_HTTP_TOKEN_FILE": str(vault.consul_token_file(service)),
            "SERVICE_CLIENT_SECRET_FILE": str(vault.service_secret_file(service)),
            "REDIS_CACHE_URL": f"redis://127.0.0.1:{settings.redis_cache_port}/0",
            "REDIS_STATE_URL": f"redis://127.0.0.1:{settings.redis_state_port}/0",
            "REDIS_USERNAME": service,
            "REDIS_PASSWORD_FILE": str(vault.redis_password_file(service)),
        }
        if service == "auth":
            environment["AUTH_CLIENTS_FILE"] = str(vault.root / "auth-clients.json")
            environment["AUTH_KEK_FILE"] = str(vault.key_encryption_file())
        if service == "notifications":
            environment.update(self._ways_to_people())
        if service.startswith(redis_servers.GATEWAY):
            environment["EDGE_CONTROL_PORTS"] = self._control_ports()
        elif settings.events == "rabbitmq":
            environment["EVENTS_URL_FILE"] = str(self._events_url_file(service))
        return {**environment, **self.per_service.get(service, {})}

    def _events_url_file(self, service: str) -> Path:
        password = self.vault.rabbitmq_password(service)
        url = rabbitmq.url(service, password, rabbitmq.node(self.settings).address)
        return self.vault.events_url_file(service, url)

    def edge_environment(self) -> dict[str, str]:
        """For HAProxy's controller, and for its commands `init` and `plan`."""
        settings = self.settings
        ports = {name: str(port) for name, port in settings.fixed_ports.items()}
        return {
            **{
                name: ports[name]
                for name in ("EDGE_HTTP_PORT", "EDGE_HTTPS_PORT", "STATS_PORT", "CONTROLLER_PORT")
            },
            "EDGE_BIND_ADDRESS": settings.edge_bind_address,
            "EDGE_DIR": str(settings.edge_dir),
            "EDGE_RUN_DIR": str(settings.run_dir),
            "EDGE_LOG_FILE": str(settings.log_dir / "requests.log"),
            "EDGE_CONTROL_PORTS": self._control_ports(),
            "CONSUL_HTTP_TOKEN_FILE": str(self.vault.consul_token_file("controller")),
        }

    def _control_ports(self) -> str:
        """Where no instance can live: a registration that names one of them is an attack."""
        return ",".join(map(str, self.settings.fixed_ports.values()))

    def _ways_to_people(self) -> dict[str, str]:
        """Mails go to the stack's own server, unless the operator names another."""
        own = f"smtp://127.0.0.1:{self.settings.mail_port}"
        return {
            "SMTP_URL": os.environ.get("SMTP_URL") or own,
            "VAPID_KEY_FILE": str(self.vault.vapid_key_file()),
            "SMS_FILE": str(self.settings.var / "mail" / "sms.log"),
        }

    def _mail(self) -> Program:
        where = {"MAIL_DIR": str(self.settings.mail_dir), "MAIL_PORT": str(self.settings.mail_port)}
        return Program("mail", (sys.executable, "-m", "stack.servers.mail_server"), where)

    def _consul(self) -> Program:
        local = consul_agent.write_local(self.settings, self.vault)
        return Program("consul", consul_agent.command(find_binary("consul"), local))

    def _acl(self) -> Program:
        production = {"CONSUL_PRODUCTION": "1" if self.settings.consul_production else "0"}
        ports = {name: str(port) for name, port in self.settings.fixed_ports.items()}
        return Program(
            "consul-tokens", (sys.executable, "-m", "stack", "keep-tokens"), {**ports, **production}
        )

    def _redis(self) -> list[Program]:
        binary = find_binary("redis-server")
        files = {
            name: redis_servers.configure(self.settings, self.vault, name) for name in redis_servers.SERVERS
        }
        return [Program(name, (binary, str(file))) for name, file in files.items()]

    def _rabbitmq(self) -> list[Program]:
        if self.settings.events != "rabbitmq":
            return []
        find_binary("rabbitmq-server")
        node = rabbitmq.node(self.settings)
        node.configure(self.vault.rabbitmq_passwords())
        mapper, *arguments = node.epmd_command
        return [
            Program(rabbitmq.EPMD, (find_binary(mapper), *arguments)),
            Program(rabbitmq.NAME, node.command, node.environment),
        ]

    def _haproxy(self) -> Program:
        settings = self.settings
        master = f"{settings.run_dir}/haproxy-master.sock,mode,600"
        config = str(settings.edge_dir / "haproxy.cfg")
        return Program("haproxy", (find_binary("haproxy"), "-W", "-db", "-S", master, "-f", config))

    def _controller(self) -> Program:
        return Program(
            "controller", (sys.executable, "-m", "haproxy.controller", "run"), self.edge_environment()
        )
