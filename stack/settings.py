"""Where the stack keeps its state and which ports it takes: from the environment."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from stack.run import ports

REPO = Path(__file__).resolve().parents[1]

Port = Annotated[int, Field(ge=1, le=65535)]

MAX_SOCKET_PATH = 95
"""Bytes: a Unix socket's address ends at 107, and HAProxy and supervisord bind to a longer temporary name first (`.<pid>.tmp`)."""


class StackSettings(BaseSettings):
    """One stack on one machine. Ports as the contract names them; every one is a variable of the same name in capitals."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    breakwater_var: Path = REPO / "var"
    edge_bind_address: str = "*"
    edge_http_port: Port = ports.DEFAULTS["EDGE_HTTP_PORT"]
    edge_https_port: Port = ports.DEFAULTS["EDGE_HTTPS_PORT"]
    stats_port: Port = ports.DEFAULTS["STATS_PORT"]
    controller_port: Port = ports.DEFAULTS["CONTROLLER_PORT"]
    consul_http_port: Port = ports.DEFAULTS["CONSUL_HTTP_PORT"]
    consul_dns_port: Port = ports.DEFAULTS["CONSUL_DNS_PORT"]
    consul_server_port: Port = ports.DEFAULTS["CONSUL_SERVER_PORT"]
    consul_serf_port: Port = ports.DEFAULTS["CONSUL_SERF_PORT"]
    redis_cache_port: Port = ports.DEFAULTS["REDIS_CACHE_PORT"]
    redis_state_port: Port = ports.DEFAULTS["REDIS_STATE_PORT"]
    mail_port: Port = ports.DEFAULTS["MAIL_PORT"]
    rabbitmq_port: Port = ports.DEFAULTS["RABBITMQ_PORT"]
    rabbitmq_dist_port: Port = ports.DEFAULTS["RABBITMQ_DIST_PORT"]
    rabbitmq_epmd_port: Port = ports.DEFAULTS["RABBITMQ_EPMD_PORT"]
    instance_port_base: Annotated[int, Field(ge=1024, le=65000)] = 20000
    consul_production: bool = False
    # What carries the events of services.
    events: Literal["redis", "rabbitmq"] = "redis"

    @classmethod
    def isolated(cls, var: Path, **changes: Any) -> Self:
        """A stack beside every other: state under `var`, everything on loopback, ports that are free now."""
        names = list(cls._port_names())
        chosen = dict(zip(names, ports.free_ports(len(names)), strict=True))
        values: dict[str, Any] = {
            **chosen,
            "breakwater_var": var,
            "edge_bind_address": "127.0.0.1",
            "instance_port_base": ports.free_block(200),
            "consul_production": False,
            "events": "redis",
        }
        return cls(**{**values, **changes})

    @classmethod
    def _port_names(cls) -> list[str]:
        return [name for name in cls.model_fields if name.endswith("_port")]

    @cached_property
    def var(self) -> Path:
        return Path(os.path.abspath(self.breakwater_var))  # noqa: PTH100  (symlinks stay: paths are shown)

    @property
    def run_dir(self) -> Path:
        """Sockets and pid files."""
        return self.var / "run"

    @property
    def log_dir(self) -> Path:
        return self.var / "log"

    @property
    def edge_dir(self) -> Path:
        return self.var / "edge"

    @property
    def data_dir(self) -> Path:
        return self.var / "data"

    @property
    def mail_dir(self) -> Path:
        """What the stack's own mail server has kept."""
        return self.var / "mail"

    @property
    def secrets_dir(self) -> Path:
        return self.var / "secrets"

    @property
    def consul_address(self) -> str:
        return f"127.0.0.1:{self.consul_http_port}"

    @property
    def edge_url(self) -> str:
        host = "127.0.0.1" if self.edge_bind_address in {"*", "0.0.0.0", "::"} else self.edge_bind_address  # noqa: S104
        return f"http://{host}:{self.edge_http_port}"

    @property
    def fixed_ports(self) -> dict[str, int]:
        """Environment variable → port, for every port that is taken and is not an instance's."""
        names = [n for n in self._port_names() if self.events == "rabbitmq" or not n.startswith("rabbitmq_")]
        return {name.upper(): getattr(self, name) for name in names}
