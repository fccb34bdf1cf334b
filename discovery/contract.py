"""The registration contract: which values may come near a configuration, a command or a connection.

Metadata is hostile input. Every parser here is an allow-list, raises `ContractError` naming the field, and
returns plain values that need no escaping: names of `[A-Za-z0-9_.-]`, canonical IP addresses, integers, paths of a strict grammar.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from discovery.errors import ContractError
from discovery.model import (
    Auth,
    Balance,
    Domain,
    Instance,
    Lane,
    Placement,
    Protocol,
    Registration,
    Route,
    Upgrade,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_OWN_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_OWN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
MAX_ID_LENGTH = 128
# An id that can be a name as it is; what ends like a made name is none of those, so that the two never meet.
_PLAIN_ID = re.compile(r"(?!.*\.[0-9a-f]{16}$)[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_INSTANCE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
# Unreserved characters of RFC 3986 only: nothing in a path needs quoting in HAProxy, a shell or JSON.
_SEGMENT = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,63}")
_INTEGER = re.compile(r"[0-9]{1,6}")
MAX_PATHS = 16
MAX_PATH_LENGTH = 200
RESERVED_PREFIXES = ("/health", "/edge")
# A stream may be silent for a day, and no longer.
MAX_IDLE_S = 86_400

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
LOOPBACK: Networks = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))

KEYS = frozenset(
    f"edge-{key}"
    for key in (
        [
            "path",
            "balance",
            "auth",
            "lane",
            "domain",
            "weight",
            "backup",
            "check",
            "check-identity",
            "warning",
            "protocol",
            "strip",
            "timeout",
            "idle",
            "cache",
            "stream",
            "upgrade",
        ]
    )
)


@dataclass(frozen=True, slots=True)
class Policy:
    """Where instances may live: inside `networks`, and on no port of `control_ports` (Consul, Redis, the edge itself …).

    An address and port stay with the service that was first there for `hold_s` seconds after it has left.
    """

    networks: Networks = LOOPBACK
    control_ports: frozenset[int] = field(default_factory=frozenset)
    hold_s: float = 60.0


def check_name(value: str, field_name: str = "name") -> str:
    """A service name: `[A-Za-z0-9][A-Za-z0-9_.-]{0,62}`. Names that differ in case only are two names."""
    if not _NAME.fullmatch(value):
        raise ContractError(
            field_name, value, "must be 1-63 of letters, digits, _ . and -, and start with a letter or digit"
        )
    return value


def check_own_name(value: str, field_name: str = "name") -> str:
    """The name of a service that runs here: `[a-z0-9-]{1,63}`, what DNS, file names and users of databases all take."""
    if not _OWN_NAME.fullmatch(value):
        raise ContractError(
            field_name, value, "must be 1-63 of a-z, 0-9 and -, and start and end with a letter or digit"
        )
    return value


def check_instance_id(value: str) -> str:
    """An instance id: 1–128 printable characters of any script."""
    if not 1 <= len(value) <= MAX_ID_LENGTH or not value.isprintable():
        raise ContractError("id", value[:200], f"must be 1-{MAX_ID_LENGTH} printable characters")
    return value


def check_own_id(value: str) -> str:
    """The id of an instance that runs here: 1–100 of `[A-Za-z0-9_.-]`, starting with a letter or digit."""
    if not _OWN_ID.fullmatch(value):
        raise ContractError(
            "id", value, "must be 1-100 of letters, digits, _ . and -, and start with a letter or digit"
        )
    return value


def instance_name(instance_id: str, node: str | None = None) -> str:
    """What an instance is called in configurations, commands, headers and logs: 1–80 of `[A-Za-z0-9_.-]`.

    The id where it is plain; else, and where another `node` has a plain one of this id, what can be read of it and a hash.
    """
    if node is None and _PLAIN_ID.fullmatch(instance_id):
        return instance_id
    digest = hashlib.sha256(f"{node or ''}\0{instance_id}".encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", instance_id).strip("-")[:60]
    return f"{readable or 'instance'}.{digest}"


def check_instance_name(value: str) -> str:
    """What `instance_name` gives."""
    if not _INSTANCE_NAME.fullmatch(value):
        raise ContractError("id", value, "must be 1-80 of letters, digits, _ . and -")
    return value


def check_path(value: str, field_name: str = "edge-path") -> str:
    """A path of unreserved characters, with no empty, `.` or `..` segment and no slash at the end; `/` alone is refused."""
    if len(value) > MAX_PATH_LENGTH:
        raise ContractError(field_name, value, f"longer than {MAX_PATH_LENGTH} characters")
    if not value.startswith("/") or value == "/":
        raise ContractError(field_name, value, "must start with / and name at least one segment")
    for segment in value[1:].split("/"):
        if not _SEGMENT.fullmatch(segment):
            raise ContractError(
                field_name,
                value,
                "segments are 1-64 of letters, digits, . _ ~ and -, not empty, not starting with a dot",
            )
    return value


def check_prefix(value: str) -> str:
    """A path prefix that a service may claim: a good path outside the edge's own prefixes."""
    path = check_path(value)
    for reserved in RESERVED_PREFIXES:
        if path == reserved or path.startswith(reserved + "/"):
            raise ContractError("edge-path", value, f"{reserved} belongs to the edge itself")
    return path


def check_address(value: str, networks: Networks = LOOPBACK) -> str:
    """An IP address inside the allowed networks, in canonical form. Names, `unix@…` and scopes are refused."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise ContractError("address", value, "not an IP address, nor a host name that resolves") from None
    if isinstance(address, ipaddress.IPv6Address) and (address.scope_id or address.ipv4_mapped):
        raise ContractError("address", value, "scoped and IPv4-mapped addresses are not taken")
    if not any(address in network for network in networks if network.version == address.version):
        raise ContractError("address", value, "outside the allowed networks; see EDGE_ALLOWED_NETWORKS")
    return str(address)


def plain_address(value: str) -> str:
    """An IP address in one spelling, an IPv4-mapped one as IPv4; anything else as it is. For comparing only."""
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        return value
    return str(getattr(address, "ipv4_mapped", None) or address)


def check_port(value: int, control_ports: frozenset[int] = frozenset()) -> int:
    """A port 1–65535 that is not one of the control ports."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise ContractError("port", value, "must be an integer from 1 to 65535")
    if value in control_ports:
        raise ContractError("port", value, "is a control port of this machine")
    return value


def parse_networks(text: str) -> Networks:
    """Comma-separated networks (`10.0.0.0/8,127.0.0.0/8`). Raises ContractError."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ContractError("networks", text, str(error)) from None


def _choice(meta: Mapping[str, str], key: str, allowed: tuple[str, ...], default: str) -> str:
    value = meta.get(key, default)
    if value not in allowed:
        raise ContractError(key, value, "must be one of " + ", ".join(allowed))
    return value


def _integer(meta: Mapping[str, str], key: str, low: int, high: int, default: int) -> int:
    text = meta.get(key, str(default))
    # fullmatch on ASCII digits: int() also takes "１" and "1_0".
    if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
        raise ContractError(key, text, f"must be an integer from {low} to {high}")
    return int(text)


def parse_route(service: str, meta: Mapping[str, str]) -> Route | None:
    """The route that a service's metadata asks for, or None when it asks for none (no `edge-path`).

    Raises ContractError for the first bad value. Unknown keys are ignored: they belong to others.
    """
    check_name(service)
    raw = meta.get("edge-path")
    if raw is None:
        return None
    prefixes = [part.strip(" ") for part in raw.split(",")]
    if len(prefixes) > MAX_PATHS:
        raise ContractError("edge-path", raw, f"more than {MAX_PATHS} prefixes")
    return Route(
        service=service,
        paths=tuple(dict.fromkeys(check_prefix(prefix) for prefix in prefixes)),
        balance=_choice(meta, "edge-balance", get_args(Balance), "roundrobin"),  # type: ignore[arg-type]
        auth=_choice(meta, "edge-auth", get_args(Auth), "jwt"),  # type: ignore[arg-type]
        lane=_choice(meta, "edge-lane", get_args(Lane), "direct"),  # type: ignore[arg-type]
        domain=_choice(meta, "edge-domain", get_args(Domain), "business"),  # type: ignore[arg-type]
        check=check_path(meta.get("edge-check", "/health/ready"), "edge-check"),
        check_identity=_choice(meta, "edge-check-identity", ("on", "off"), "on") == "on",
        warning=_choice(meta, "edge-warning", ("serve", "skip"), "serve"),  # type: ignore[arg-type]
        protocol=_choice(meta, "edge-protocol", get_args(Protocol), "http"),  # type: ignore[arg-type]
        strip=_choice(meta, "edge-strip", ("true", "false"), "false") == "true",
        timeout_s=_integer(meta, "edge-timeout", 1, 3600, 30),
        idle_s=_integer(meta, "edge-idle", 1, MAX_IDLE_S, 60),
        cache=_choice(meta, "edge-cache", ("true", "false"), "false") == "true",
        stream=_choice(meta, "edge-stream", ("true", "false"), "false") == "true",
        upgrade=_choice(meta, "edge-upgrade", get_args(Upgrade), "none"),  # type: ignore[arg-type]
    )


def parse_placement(instance: Instance, policy: Policy) -> Placement:
    """Where and how an instance may be reached. Raises ContractError for the first bad value."""
    check_instance_id(instance.id)
    return Placement(
        address=check_address(instance.address, policy.networks),
        port=check_port(instance.port, policy.control_ports),
        weight=_integer(instance.meta, "edge-weight", 1, 256, instance.weight),
        backup=_choice(instance.meta, "edge-backup", ("true", "false"), "false") == "true",
    )


def registration_meta(registration: Registration) -> dict[str, str]:
    """Check a registration as the edge will, and return the metadata that goes to Consul.

    The address may be any IP address (the edge's operator decides about networks). Raises ContractError.
    """
    check_name(registration.name)
    check_own_id(registration.id)
    everywhere = parse_networks("0.0.0.0/0,::/0")
    check_address(registration.address, everywhere)
    check_port(registration.port)
    if not 1 <= registration.weight <= 256:
        raise ContractError("edge-weight", registration.weight, "must be an integer from 1 to 256")
    for key, value in registration.meta.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", key):
            raise ContractError("meta", key, "Consul takes keys of 1-128 of A-Z, a-z, 0-9, _ and - only")
        if key in KEYS:
            raise ContractError("meta", key, "comes from `route`, `weight` or `backup`, not from `meta`")
        if len(value) > 512:
            raise ContractError(key, value, "longer than the 512 characters that Consul takes")
    meta = dict(registration.meta)
    if registration.route is not None:
        meta |= registration.route.to_meta()
        if len(meta["edge-path"]) > 512:
            raise ContractError(
                "edge-path", meta["edge-path"], "longer than the 512 characters that Consul takes"
            )
        parse_route(registration.name, meta)
    meta["edge-weight"] = str(registration.weight)
    meta["edge-backup"] = "true" if registration.backup else "false"
    return meta
