"""What an instance takes from its environment, typed and checked before anything starts.

Every field `x` reads the variable `X`; any of them can be given as `X_FILE`, the path of a file that holds the
value (for secrets). An empty variable counts as unset. Services add fields by subclassing `ServiceSettings`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from services.kit.server.addresses import check_advertised, check_networks

WorkerClass = Literal["gthread", "gevent"]

_BROKER = re.compile(r"(?:rediss?|unix|amqps?)://")
_ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?", re.ASCII)


def check_origins(text: str) -> str:
    """`*`, or origins as browsers spell them, comma-separated. Raises ValueError naming the first that is invalid."""
    origins = [part.strip() for part in text.split(",") if part.strip()]
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is not an origin such as https://shop.example.com")
    return ",".join(origins)


def check_broker(url: SecretStr) -> SecretStr:
    """Raises ValueError for a URL that is of no broker we know; it is not shown, for it may hold a password."""
    if not _BROKER.match(url.get_secret_value()):
        raise ValueError("a URL that begins with redis://, rediss://, unix://, amqp:// or amqps:// is needed")
    return url


class FileSource(PydanticBaseSettingsSource):
    """Reads field `x` from the file that `X_FILE` names; surrounding white space is taken off."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        path = os.environ.get(f"{field_name.upper()}_FILE", "")
        if not path:
            return None, field_name, False
        try:
            return Path(path).read_text().strip(), field_name, False
        except OSError as error:
            raise SettingsError(f"{field_name.upper()}_FILE={path}: {error.strerror}") from None

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, field in self.settings_cls.model_fields.items():
            if f"{name}_file" in self.settings_cls.model_fields or name.endswith("_file"):
                continue  # a setting that is a path itself, such as AUTH_KEK_FILE
            value, key, _ = self.get_field_value(field, name)
            if value:
                found[key] = value
        return found


class ServiceSettings(BaseSettings):
    """Settings that every service has. Times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    # The IP address in Consul, where it differs from the one listened on (0.0.0.0 in a container); or a network,
    # as in 10.0.0.0/24: then the instance's own address in it.
    advertise_address: Annotated[str, AfterValidator(check_advertised)] | None = None
    instance_id: str | None = None
    instance_weight: int = Field(default=100, ge=1, le=256)
    instance_backup: bool = False

    data_dir: Path = Path("var/data")
    database_url: SecretStr | None = None
    # With gthread at most three quarters of the threads: see `threads_to_wait`.
    db_pool_size: int = Field(default=8, ge=1, le=100)
    db_timeout_s: float = Field(default=2.0, gt=0, le=60)

    consul_http_addr: str = "127.0.0.1:8500"
    consul_http_token: SecretStr | None = None

    redis_cache_url: str | None = None
    redis_state_url: str | None = None
    # The broker of events, by its scheme Redis or RabbitMQ; by default the Redis for state.
    events_url: Annotated[SecretStr, AfterValidator(check_broker)] | None = None
    redis_username: str | None = None
    redis_password: SecretStr | None = None
    # What a request pays, once, for a Redis that hangs; a miss by mistake costs a read of the database.
    redis_cache_timeout_s: float = Field(default=0.05, gt=0, le=5)
    redis_state_timeout_s: float = Field(default=0.5, gt=0, le=10)

    # Whose X-Forwarded-* count: the edge's, and the gateways', which pass them on.
    trusted_proxies: Annotated[str, AfterValidator(check_networks)] = "127.0.0.0/8,::1/128"
    # `*`, or the origins whose pages may read the answers, comma-separated. Credentials are cookies: tokens need none.
    cors_origins: Annotated[str, AfterValidator(check_origins)] = ""
    cors_credentials: bool = False

    auth_issuer: str = "breakwater"
    auth_audience: str = "breakwater-api"
    auth_jwks_url: str | None = None
    auth_revocations_url: str | None = None
    service_client_secret: SecretStr | None = None

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    worker_class: WorkerClass = "gthread"
    worker_threads: int = Field(default=8, ge=1, le=256)
    drain_delay_s: float = Field(default=1.0, ge=0, le=60)
    drain_timeout_s: float = Field(default=20.0, ge=0, le=600)

    # Of services that speak gRPC: a free port by default; reflection is for development; `grpc_edge` gives it a route at the edge.
    grpc_port: int = Field(default=0, ge=0, le=65535)
    grpc_reflection: bool = False
    grpc_edge: bool = False

    max_body_bytes: int = Field(default=1024 * 1024, ge=0)
    # How long a head may take from its first byte, and a body that is not whole when its head is.
    body_timeout_s: float = Field(default=10.0, gt=0, le=600)
    # A client that takes nothing more of its answer for so long is gone.
    unread_timeout_s: float = Field(default=60.0, ge=1, le=3600)
    deadline_s: float = Field(default=30.0, gt=0, le=3600)

    @model_validator(mode="after")
    def _credentials_for_named_origins(self) -> Self:
        if self.cors_credentials and "*" in self.cors_origins:
            raise ValueError(
                "CORS_CREDENTIALS needs CORS_ORIGINS to name its origins: * is never given credentials"
            )
        return self

    def threads_to_wait(self) -> int | None:
        """How many requests at once may wait for one thing: for bodies, or for the database. None: any number of greenlets.

        A quarter of the threads is left for what needs neither, health checks first.
        """
        return max(1, self.worker_threads * 3 // 4) if self.worker_class == "gthread" else None

    @classmethod
    def from_environment(cls) -> Self:
        """The settings of this process. What is wrong with them ends it, with a line for each bad variable."""
        try:
            return cls()
        except ValidationError as error:
            wrong = (
                ": ".join([*(str(part).upper() for part in e["loc"][:1]), e["msg"]])
                for e in error.errors(include_url=False)
            )
            sys.exit("cannot start, the environment is wrong:\n  " + "\n  ".join(wrong))
        except SettingsError as error:
            sys.exit(f"cannot start, the environment is wrong:\n  {error.__cause__ or error}")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, FileSource(settings_cls)


def secret(value: SecretStr | None) -> str | None:
    """The text of an optional secret."""
    return value.get_secret_value() if value is not None else None
