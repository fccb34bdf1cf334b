"""The registration contract: which values may come near a configuration, a command or a connection.

Metadata is hostile input. Every parser here is an allow-list, raises `ContractError` naming the field, and
returns plain values that need no escaping: names of `[A-Za-z0-9_.-]`, canonical IP addresses, integers, paths of a strict grammar.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from discovery.errors import ContractError
from discovery.model import (
    MAX_WEIGHT,
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
MAX_VALUE_LENGTH = 512
RESERVED_PREFIXES = ("/health", "/edge")
# A stream may be silent for a day, and no longer.
MAX_IDLE_S = 86_400

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
LOOPBACK: Networks = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


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


@dataclass(frozen=True, slots=True)
class Key:
    """One metadata key: the field it stands for, how its text is read (raises ContractError), and how a value is written.

    What a key that is not there means, is the default of the field.
    """

    name: str
    field: str
    read: Callable[[str, str], Any]
    write: Callable[[Any], str] = str


def _choice(name: str, field: str, *allowed: str) -> Key:
    def read(key: str, text: str) -> str:
        if text not in allowed:
            raise ContractError(key, text, "must be one of " + ", ".join(allowed))
        return text

    return Key(name, field, read)


def _flag(name: str, field: str, yes: str = "true", no: str = "false") -> Key:
    one_of = _choice(name, field, yes, no).read
    return Key(name, field, lambda key, text: one_of(key, text) == yes, lambda value: yes if value else no)


def _integer(name: str, field: str, low: int, high: int) -> Key:
    def read(key: str, text: str) -> int:
        # fullmatch on ASCII digits: int() also takes "１" and "1_0".
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise ContractError(key, text, f"must be an integer from {low} to {high}")
        return int(text)

    return Key(name, field, read)


def _read_paths(key: str, text: str) -> tuple[str, ...]:
    prefixes = [part.strip(" ") for part in text.split(",")]
    if len(prefixes) > MAX_PATHS:
        raise ContractError(key, text, f"more than {MAX_PATHS} prefixes")
    return tuple(dict.fromkeys(map(check_prefix, prefixes)))


WEIGHT = _integer("edge-weight", "weight", 1, MAX_WEIGHT)
# Of one instance: fields of Placement and of Registration.
INSTANCE_KEYS = (WEIGHT, _flag("edge-backup", "backup"))
# Of a service: fields of Route.
ROUTE_KEYS = (
    Key("edge-path", "paths", _read_paths, ",".join),
    _choice("edge-balance", "balance", *get_args(Balance)),
    _choice("edge-auth", "auth", *get_args(Auth)),
    _choice("edge-lane", "lane", *get_args(Lane)),
    _choice("edge-domain", "domain", *get_args(Domain)),
    Key("edge-check", "check", lambda key, text: check_path(text, key)),
    _flag("edge-check-identity", "check_identity", "on", "off"),
    _choice("edge-warning", "warning", "serve", "skip"),
    _choice("edge-protocol", "protocol", *get_args(Protocol)),
    _flag("edge-strip", "strip"),
    _integer("edge-timeout", "timeout_s", 1, 3600),
    _integer("edge-idle", "idle_s", 1, MAX_IDLE_S),
    _flag("edge-cache", "cache"),
    _flag("edge-stream", "stream"),
    _choice("edge-upgrade", "upgrade", *get_args(Upgrade)),
)
KEYS = frozenset(key.name for key in (*ROUTE_KEYS, *INSTANCE_KEYS))


def _read(keys: tuple[Key, ...], meta: Mapping[str, str]) -> dict[str, Any]:
    return {key.field: key.read(key.name, meta[key.name]) for key in keys if key.name in meta}


def _write(keys: tuple[Key, ...], values: Route | Registration) -> dict[str, str]:
    return {key.name: key.write(getattr(values, key.field)) for key in keys}


def route_meta(route: Route) -> dict[str, str]:
    """The metadata that asks for this route; `parse_route` reads it back."""
    return _write(ROUTE_KEYS, route)


def parse_route(service: str, meta: Mapping[str, str]) -> Route | None:
    """The route that a service's metadata asks for, or None when it asks for none (no `edge-path`).

    Raises ContractError for the first bad value. Unknown keys are ignored: they belong to others.
    """
    check_name(service)
    return Route(service, **_read(ROUTE_KEYS, meta)) if "edge-path" in meta else None


def parse_placement(instance: Instance, policy: Policy) -> Placement:
    """Where and how an instance may be reached. Raises ContractError for the first bad value."""
    check_instance_id(instance.id)
    return Placement(
        address=check_address(instance.address, policy.networks),
        port=check_port(instance.port, policy.control_ports),
        **{"weight": instance.weight} | _read(INSTANCE_KEYS, instance.meta),
    )


def registration_meta(registration: Registration) -> dict[str, str]:
    """Check a registration as the edge will, and return the metadata that goes to Consul.

    The address may be any IP address (the edge's operator decides about networks). Raises ContractError.
    """
    check_name(registration.name)
    check_own_id(registration.id)
    check_address(registration.address, parse_networks("0.0.0.0/0,::/0"))
    check_port(registration.port)
    for key in registration.meta:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", key):
            raise ContractError("meta", key, "Consul takes keys of 1-128 of A-Z, a-z, 0-9, _ and - only")
        if key in KEYS:
            raise ContractError("meta", key, "comes from `route`, `weight` or `backup`, not from `meta`")
    meta = dict(registration.meta) | _write(INSTANCE_KEYS, registration)
    _read(INSTANCE_KEYS, meta)
    if registration.route is not None:
        meta |= route_meta(registration.route)
        parse_route(registration.name, meta)
    for key, value in meta.items():
        if len(value) > MAX_VALUE_LENGTH:
            raise ContractError(
                key, value, f"longer than the {MAX_VALUE_LENGTH} characters that Consul takes"
            )
    return meta
