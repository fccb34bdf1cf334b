"""The controller's and the edge's settings, from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict

_VAR = Path(__file__).resolve().parents[2] / "var"


class EdgeSettings(BaseSettings):
    """One edge: where it listens, where its files live, and how much it lets through. Times in seconds."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    edge_name: str = "edge"
    edge_bind_address: str = "*"
    edge_http_port: int = 8080
    edge_https_port: int = 8443
    stats_port: int = 8404
    controller_port: int = 8405
    edge_dir: Path = _VAR / "edge"
    edge_run_dir: Path = _VAR / "run"
    edge_allowed_networks: str = "127.0.0.0/8,::1/128"
    edge_control_ports: str = ""
    edge_rate_source: int = 2000
    edge_rate_subject: int = 1000
    auth_issuer: str = "breakwater"
    auth_audience: str = "breakwater-api"
    consul_http_addr: str = "127.0.0.1:8500"
    consul_http_token: str = ""
    consul_http_token_file: Path | None = None
