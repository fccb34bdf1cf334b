"""The two Redis servers: their configuration, and which keys each service may touch in them.

Every service is a user of its own; the configuration holds digests of the passwords, the vault the passwords. `default`, as
which every client begins, is off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import structlog

from stack.errors import StackError
from stack.servers.vault import REDIS_OPERATOR, Vault, write_private
from stack.settings import StackSettings

log = structlog.get_logger(__name__)

SERVERS: Mapping[str, tuple[str, ...]] = {
    "redis-cache": ("maxmemory 64mb", "maxmemory-policy allkeys-lru", "appendonly no"),
    "redis-state": (
        "maxmemory 256mb",
        "maxmemory-policy noeviction",
        "appendonly yes",
        "appendfsync everysec",
    ),
}
"""Program → the lines in which it differs. What is in the cache may be lost, what is in the state may not."""

GATEWAY = "gateway-"
"""Begins the names of the gateways, which share one namespace, and read the last good answers of all services."""

# All that works on data, for the keys bound it. Not what names the keys of others (SCAN, RANDOMKEY, CLIENT TRACKING,
# PUBSUB CHANNELS), what they hang from (SCRIPT KILL and FLUSH, FUNCTION), and what rules the server.
COMMANDS = (
    "-@all +@read +@write +@connection +@transaction +@scripting +@pubsub -@dangerous -@admin"
    " -scan -randomkey -dbsize -client|tracking -client|caching -pubsub -function -script +script|load +script|exists"
)

# What a service may do with the streams of others' events.
CONSUMING = "+xreadgroup +xack +xgroup|create"

_TIMEOUT_S = 2.0


def rules(service: str) -> str:
    """What a service may: in the words of Redis' ACL, without its password."""
    names: tuple[str, ...]
    own: list[str] = []
    if service.startswith(GATEWAY):
        domain = service.removeprefix(GATEWAY)
        names = (service, f"gateway:{domain}", "gateway:shared", "stale")
    else:
        # The kit keeps a service's last good answers under `stale`, where the gateways find them.
        names = (service, f"stale:{service}")
        own.append(f"~events:{service}")
        # Streams that are read by one command must be named by one rule: others' and what comes back from its dead letters.
        own.append(f"({CONSUMING} ~events:* ~{service}:events:*)")
    return " ".join([COMMANDS, *(f"~{name}:* &{name}:*" for name in names), *own])


def configure(settings: StackSettings, vault: Vault, name: str) -> Path:
    """Write the server's configuration and its users: all services that have a password. Returns the first one's path."""
    folder = settings.var / name
    return write_configuration(name, vault, folder, data=folder, bind="127.0.0.1", port=_port(settings, name))


def write_configuration(name: str, vault: Vault, folder: Path, *, data: Path, bind: str, port: int) -> Path:
    """The same into any folder, for a server that keeps its data in `data`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    users = folder / "users.acl"
    write_private(users, "\n".join(_users(vault)) + "\n")
    lines = [
        f"bind {bind}",
        "protected-mode yes",
        f"port {port}",
        "daemonize no",
        f'dir "{data}"',
        'save ""',
        # A changed title would overwrite the environment by which the stack knows its processes.
        "set-proc-title no",
        f'aclfile "{users}"',
        # What one service sends at once counts as memory, and would drive out what the others have stored. The largest
        # thing that a service stores is 1 MiB.
        "proto-max-bulk-len 2mb",
        "client-query-buffer-limit 4mb",
        *SERVERS[name],
    ]
    path = folder / "redis.conf"
    write_private(path, "\n".join(lines) + "\n")
    return path


def admit(settings: StackSettings, vault: Vault, service: str) -> None:
    """Make a service known to the servers that run now; one that does not will read it from its file.

    Raises StackError where a server hangs or does not know the stack.
    """
    # Not for every command of the Makefile: it takes 0.1 s.
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import AuthenticationError, ConnectionError, ResponseError, TimeoutError
    from redis.retry import Retry

    words = ["reset", *_rules_with_password(vault, service).split()]
    for name in SERVERS:
        # Not ACL LOAD: before Redis 7.2 it cuts all connections.
        client = Redis(
            port=_port(settings, name),
            username=REDIS_OPERATOR,
            password=vault.redis_password(REDIS_OPERATOR),
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            client.execute_command("ACL SETUSER", service, *words)  # type: ignore[no-untyped-call]
        except (AuthenticationError, ResponseError) as error:
            raise StackError(
                f"{name} does not let the stack in ({error})",
                "an earlier version may have started it: make down, make up",
            ) from error
        except TimeoutError as error:
            raise StackError(f"{name} does not answer", f"see: make logs SERVICE={name}") from error
        except ConnectionError as error:
            log.info(
                "redis user waits for the server's start", server=name, service=service, error=str(error)
            )
        finally:
            client.close()


def _users(vault: Vault) -> list[str]:
    everything = "~* &* +@all"
    operator = f"user {REDIS_OPERATOR} on {everything} #{_digest(vault, REDIS_OPERATOR)}"
    services = [f"user {name} {_rules_with_password(vault, name)}" for name in vault.redis_names()]
    # Off, so that nobody can be it; but Redis replays the transactions in its file in its name, and would pass over what it may not.
    return [f"user default reset {everything}", operator, *services]


def _rules_with_password(vault: Vault, service: str) -> str:
    return f"on {rules(service)} #{_digest(vault, service)}"


def _digest(vault: Vault, name: str) -> str:
    return hashlib.sha256(vault.redis_password(name).encode()).hexdigest()


def _port(settings: StackSettings, name: str) -> int:
    return settings.fixed_ports[f"{name.upper().replace('-', '_')}_PORT"]
