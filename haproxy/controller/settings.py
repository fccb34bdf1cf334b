"""The controller's and the edge's settings, from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

_VAR = Path(__file__).resolve().parents[2] / "var"


class EdgeSettings(BaseSettings):
    """One edge: where it listens, where its files live, and how much it lets through. Times in seconds."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    edge_name: str = "edge"
    edge_bind_address: str = "*"
    edge_http_port: int = Field(8080, ge=1, le=65535)
    edge_https_port: int = Field(8443, ge=1, le=65535)
    stats_port: int = Field(8404, ge=1, le=65535)
    controller_port: int = Field(8405, ge=1, le=65535)
    edge_dir: Path = _VAR / "edge"
    edge_run_dir: Path = _VAR / "run"
    edge_allowed_networks: str = "127.0.0.0/8,::1/128"
    edge_control_ports: str = ""
    # Requests per 10 s; 0 turns the limit off. Generous: they stop a runaway client, not a busy one.
    edge_rate_source: int = Field(20_000, ge=0, le=10_000_000)
    edge_rate_subject: int = Field(5_000, ge=0, le=10_000_000)
    # Sent with TLS answers only. A browser ignores it over a certificate that it does not trust, such as our own.
    edge_hsts_s: int = Field(31_536_000, ge=0, le=63_072_000)
    edge_cache_mb: int = Field(64, ge=0, le=4095)  # 0 turns the cache off
    auth_issuer: str = "breakwater"
    auth_audience: str = "breakwater-api"
    consul_http_addr: str = "127.0.0.1:8500"
    consul_http_token: str = ""
    consul_http_token_file: Path | None = None

    @property
    def config_path(self) -> Path:
        """The configuration that HAProxy runs with."""
        return self.edge_dir.absolute() / "haproxy.cfg"

    @property
    def errors_dir(self) -> Path:
        """Where the bodies of HAProxy's own answers are written."""
        return self.edge_dir.absolute() / "errors"

    @property
    def certificate(self) -> Path:
        """Certificate and key in one PEM file."""
        return self.edge_dir.absolute() / "tls" / "edge.pem"

    @property
    def runtime_socket(self) -> Path:
        """HAProxy's Runtime API."""
        return self.edge_run_dir.absolute() / "haproxy.sock"
