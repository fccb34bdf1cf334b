"""What a gateway takes from its environment, beside what every service does."""

from __future__ import annotations

from pydantic import Field

from discovery.model import Domain
from services.kit.settings import ServiceSettings


class GatewaySettings(ServiceSettings):
    """Times in seconds, sizes in bytes. `gateway_domain` makes the group: its service is `gateway-<domain>`."""

    gateway_domain: Domain = "business"

    # Bodies are passed on as they come: the limit is one of good sense, services have their own.
    max_body_bytes: int = Field(default=32 * 1024 * 1024, ge=0)
