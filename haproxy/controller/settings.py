"""The controller's and the edge's settings, from the environment."""

from __future__ import annotations

import socket
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from discovery.contract import Networks, Policy, check_port, parse_networks
from discovery.errors import ContractError

_VAR = Path(__file__).resolve().parents[2] / "var"


class EdgeSettings(BaseSettings):
    """One edge: where it listens, where its files live, and how much it lets through. Times in seconds."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    # Another name for each edge of a fleet: verdicts are kept by it.
    edge_name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=100)
    edge_bind_address: str = "*"
    edge_http_port: int = Field(default=8080, ge=1, le=65535)
    edge_https_port: int = Field(default=8443, ge=1, le=65535)
    stats_port: int = Field(default=8404, ge=1, le=65535)
    # Another than loopback only where something else keeps it from being reached from outside, as Docker does.
    stats_bind_address: str = "127.0.0.1"
    controller_port: int = Field(default=8405, ge=1, le=65535)
    # The controller's metrics; as for the edge's own.
    controller_bind_address: str = "127.0.0.1"
    edge_dir: Path = _VAR / "edge"
    edge_run_dir: Path = _VAR / "run"
    # Where the controller writes HAProxy's log, a line for each request; without it HAProxy writes it to stdout.
    edge_log_file: Path | None = None
    edge_allowed_networks: str = "127.0.0.0/8,::1/128"
    edge_control_ports: str = ""
    # How long an address and port stay with the service that was first there and has left: it may be restarting.
    edge_hold_s: float = Field(default=60.0, ge=0, le=600)
    # Balancers and other proxies in front of this edge, comma-separated networks. From them, and only from them, the client's address
    # is taken: from the PROXY protocol where that is on, and then they must speak it, else from the last address in X-Forwarded-For.
    edge_trusted_proxies: str = ""
    edge_proxy_protocol: bool = False
    # Connections of clients in all (0: as many as the descriptors allow), and of the edge to each instance (0: no bound): more requests
    # wait for a second, and get a 503. A bound costs a tenth of a request or more: HAProxy looks at the queue after each.
    edge_maxconn: int = Field(default=0, ge=0, le=30_000)
    edge_server_maxconn: int = Field(default=0, ge=0, le=30_000)
    # Bytes of a head, or of a head and a short body, that are held: a longer head is refused with a page of HAProxy's own. It is copied whole for
    # each request that may be sent twice.
    edge_bufsize: int = Field(default=81_920, ge=16_384, le=1_048_576)
    # Requests per 10 s; 0 turns the limit off. Generous: they stop a runaway client, not a busy one.
    edge_rate_source: int = Field(default=20_000, ge=0, le=10_000_000)
    edge_rate_subject: int = Field(default=5_000, ge=0, le=10_000_000)
    # Sent with TLS answers only. A browser ignores it over a certificate that it does not trust, such as our own.
    edge_hsts_s: int = Field(default=31_536_000, ge=0, le=63_072_000)
    edge_cache_mb: int = Field(default=64, ge=0, le=4095)  # 0 turns the cache off
    auth_issuer: str = "breakwater"
    auth_audience: str = "breakwater-api"
    consul_http_addr: str = "127.0.0.1:8500"
    consul_http_token: str = ""
    consul_http_token_file: Path | None = None
    # How long HAProxy may finish what is open on an instance that leaves.
    edge_drain_s: float = Field(default=30.0, ge=0)
    # The whole of HAProxy is compared with the whole of Consul this often; changes are followed at once.
    edge_sync_s: float = Field(default=30.0, gt=0)
    # The guard: more than half of all instances, and at least `minimum`, gone in one step are kept for `grace`.
    edge_guard_grace_s: float = Field(default=10.0, ge=0)
    edge_guard_minimum: int = Field(default=4, ge=1)
    # A service that has gone keeps its prefixes (and answers 503) this long.
    edge_route_memory_s: float = Field(default=86_400.0, ge=0)
    edge_keys_s: float = Field(default=10.0, gt=0)
    haproxy_binary: str = "haproxy"

    @property
    def config_path(self) -> Path:
        return self.edge_dir.absolute() / "haproxy.cfg"

    @property
    def errors_dir(self) -> Path:
        return self.edge_dir.absolute() / "errors"

    @property
    def maps_dir(self) -> Path:
        return self.edge_dir.absolute() / "maps"

    @property
    def revoked_file(self) -> Path:
        """Subjects whose tokens have ended before they expire: a map of HAProxy."""
        return self.edge_dir.absolute() / "revoked.map"

    @property
    def certificate(self) -> Path:
        """Certificate and key in one PEM file."""
        return self.edge_dir.absolute() / "tls" / "edge.pem"

    @property
    def runtime_socket(self) -> Path:
        return self.edge_run_dir.absolute() / "haproxy.sock"

    @property
    def master_socket(self) -> Path:
        return self.edge_run_dir.absolute() / "haproxy-master.sock"

    @property
    def log_socket(self) -> Path:
        """Where HAProxy sends its log."""
        return self.edge_run_dir.absolute() / "log.sock"

    @property
    def lock_file(self) -> Path:
        """Held by the one controller of this edge."""
        return self.edge_run_dir.absolute() / "controller.lock"

    @property
    def server_state_file(self) -> Path:
        """Read by HAProxy on a reload: the servers that its own checks hold for down."""
        return self.edge_dir.absolute() / "servers.state"

    @property
    def keys_dir(self) -> Path:
        """The issuer's public keys, one PEM file each."""
        return self.edge_dir.absolute() / "jwt"

    def consul_token(self) -> str | None:
        """The token given, or read from the file given; None for neither. Raises OSError for an unreadable file."""
        if self.consul_http_token_file is not None:
            return self.consul_http_token_file.read_text().strip() or None
        return self.consul_http_token or None

    def trusted_proxies(self) -> Networks:
        """Raises ContractError for what is no network."""
        return parse_networks(self.edge_trusted_proxies)

    def policy(self) -> Policy:
        """Where instances may live. Raises ContractError for a bad network or port."""
        ports = {self.edge_http_port, self.edge_https_port, self.stats_port, self.controller_port}
        for part in filter(None, (text.strip() for text in self.edge_control_ports.split(","))):
            if not (part.isascii() and part.isdigit()):
                raise ContractError("EDGE_CONTROL_PORTS", part, "must be integers from 1 to 65535")
            ports.add(check_port(int(part)))
        return Policy(parse_networks(self.edge_allowed_networks), frozenset(ports), self.edge_hold_s)
