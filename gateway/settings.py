"""What a gateway takes from its environment, beside what every service does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from discovery.contract import Policy, check_port, parse_networks
from discovery.errors import ContractError
from discovery.model import Domain
from discovery.resilience.breaker import BreakerSettings
from gateway.limits.concurrency import ConcurrencySettings
from gateway.limits.loadshed import ShedSettings
from gateway.limits.ratelimit import LimitSettings, policies
from services.kit.settings import ServiceSettings


def _limits(kind: str) -> AfterValidator:
    def check(text: str) -> str:
        policies(kind, text)
        return text

    return AfterValidator(check)


Rates = Annotated[str, _limits("rate")]
Quotas = Annotated[str, _limits("quota")]


class GatewaySettings(ServiceSettings):
    """Times in seconds, sizes in bytes. `gateway_domain` makes the group: its service is `gateway-<domain>`."""

    gateway_domain: Domain = "business"

    worker_class: Literal["gthread", "gevent"] = "gevent"
    # Bodies are passed on as they come: the limit is one of good sense, services have their own.
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=0)
    # Each route has its own patience, `edge-timeout`; this is the most of them.
    deadline_s: float = Field(default=3600.0, gt=0, le=3600)

    # A folder of one's own declarations of composed routes, `<domain>.toml`; without it, those of `gateway/compose`.
    gateway_compose_dir: Path | None = None

    # Where instances may live, as at the edge.
    edge_allowed_networks: str = "127.0.0.0/8,::1/128"
    edge_control_ports: str = ""
    # So long an address and port stay with the service that was there first and has left: it may be restarting.
    edge_hold_s: float = Field(default=60.0, ge=0, le=600)

    # Calls at once in one process; a share of them is for services of the identity domain alone.
    gateway_calls: int = Field(default=512, ge=1, le=100_000)
    gateway_reserved_share: float = Field(default=0.2, ge=0, le=0.9)
    # Calls at once to one service adapt between these.
    gateway_upstream_min: int = Field(default=16, ge=1, le=100_000)
    gateway_upstream_initial: int = Field(default=128, ge=1, le=100_000)
    gateway_upstream_max: int = Field(default=256, ge=1, le=100_000)
    # Bodies of requests that are waited for at once: in one process, and of one client address.
    gateway_bodies: int = Field(default=256, ge=1, le=100_000)
    gateway_bodies_per_client: int = Field(default=32, ge=1, le=100_000)
    # Requests that one subject (without a token: one address) may have open at once in one process, streams among them.
    gateway_open_per_subject: int = Field(default=200, ge=1, le=100_000)
    # Answers being passed on at once: in one process, and of one service.
    gateway_streams: int = Field(default=512, ge=1, le=100_000)
    gateway_upstream_streams: int = Field(default=256, ge=1, le=100_000)

    # How long a breaker stays open, and how many calls it then lets through in each such time.
    gateway_breaker_open_s: float = Field(default=5.0, gt=0, le=600)
    gateway_breaker_trials: int = Field(default=3, ge=1, le=1000)

    # By verified subject, as in `10/second;600/minute`, or `off`; for tokens made from API keys apart.
    gateway_rate_limits: Rates = "30000/minute"
    gateway_quotas: Quotas = "5000000/day"
    gateway_key_rate_limits: Rates = "30000/minute"
    gateway_key_quotas: Quotas = "5000000/day"

    # Answers held in one process, over those in Redis.
    gateway_cache_bytes: int = Field(default=32 * 1024 * 1024, ge=0)

    def breaker(self) -> BreakerSettings:
        """When breakers open. Two good trials close one, or the only one that it lets through."""
        return BreakerSettings(
            open_s=self.gateway_breaker_open_s,
            trials=self.gateway_breaker_trials,
            successes=min(2, self.gateway_breaker_trials),
        )

    def shed(self) -> ShedSettings:
        """How much at once. A maximum below the minimum, or an initial limit outside, is brought in."""
        least = self.gateway_upstream_min
        most = max(least, self.gateway_upstream_max)
        return ShedSettings(
            group=self.gateway_calls,
            reserved=self.gateway_reserved_share,
            streams=self.gateway_streams,
            upstream_streams=self.gateway_upstream_streams,
            upstream=ConcurrencySettings(
                minimum=least,
                initial=min(most, max(least, self.gateway_upstream_initial)),
                maximum=most,
            ),
        )

    def limits(self) -> LimitSettings:
        """How often."""
        return LimitSettings(
            policies("rate", self.gateway_rate_limits) + policies("quota", self.gateway_quotas),
            policies("rate", self.gateway_key_rate_limits) + policies("quota", self.gateway_key_quotas),
        )

    def policy(self) -> Policy:
        """Where instances may live. Raises ContractError for a bad network or port."""
        ports = set()
        for part in filter(None, (text.strip() for text in self.edge_control_ports.split(","))):
            if not (part.isascii() and part.isdigit()):
                raise ContractError("EDGE_CONTROL_PORTS", part, "must be integers from 1 to 65535")
            ports.add(check_port(int(part)))
        return Policy(parse_networks(self.edge_allowed_networks), frozenset(ports), self.edge_hold_s)
