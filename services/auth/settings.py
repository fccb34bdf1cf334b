"""What auth takes from its environment on top of what every service does. Times in seconds."""

from __future__ import annotations

from pathlib import Path

from argon2 import DEFAULT_MEMORY_COST, DEFAULT_PARALLELISM, DEFAULT_TIME_COST
from pydantic import Field

from services.kit import ServiceSettings


class AuthSettings(ServiceSettings):
    """`auth_key_publish_s` is how long a new signing key is published before it signs; 0, for tests, uses it at once."""

    # Twice what can be held up by hashing (slots, and as many waiting): refresh and key set go on under a login storm.
    worker_threads: int = Field(default=8, ge=1, le=256)

    auth_kek_file: Path
    auth_clients_file: Path | None = None

    auth_access_ttl_s: int = Field(default=900, ge=1, le=86400)
    # What an API key or a session is exchanged for: a revocation takes this long to reach the edge.
    auth_exchange_ttl_s: int = Field(default=300, ge=1, le=86400)
    auth_refresh_ttl_s: int = Field(default=30 * 86400, ge=1)
    auth_session_ttl_s: int = Field(default=86400, ge=1)

    auth_key_publish_s: float = Field(default=60.0, ge=0)
    auth_key_refresh_s: float = Field(default=2.0, ge=0.05, le=30)

    auth_argon2_memory_kib: int = Field(default=DEFAULT_MEMORY_COST, ge=8, le=1024 * 1024)
    auth_argon2_time: int = Field(default=DEFAULT_TIME_COST, ge=1, le=20)
    auth_argon2_lanes: int = Field(default=DEFAULT_PARALLELISM, ge=1, le=16)
    auth_argon2_slots: int = Field(default=2, ge=1, le=64)
    auth_argon2_wait_s: float = Field(default=0.5, ge=0, le=10)

    @property
    def longest_token_s(self) -> int:
        """How long any access token lives."""
        return max(self.auth_access_ttl_s, self.auth_exchange_ttl_s)
