"""Where an instance can be reached, and what it is called, when it listens on every address it has (a container)."""

from __future__ import annotations

import ipaddress
import socket


class NoAddress(Exception):
    """This machine has no address on the network that its instances are to be found on."""


WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to


def check_advertised(text: str) -> str:
    """An IP address, or a network in CIDR notation. Raises ValueError."""
    if "/" in text:
        ipaddress.ip_network(text)
    else:
        ipaddress.ip_address(text)
    return text


def check_networks(text: str) -> str:
    """Networks in CIDR notation with commas between them. Raises ValueError."""
    for part in text.split(","):
        ipaddress.ip_network(part.strip())
    return text


def own_address(advertised: str) -> str | None:
    """The address to be registered: the one given, or this machine's own in the network given; None when it has none there.

    A container that is taken off its network and put back may get another one.
    """
    if "/" not in advertised:
        return advertised
    network = ipaddress.ip_network(advertised)
    family = socket.AF_INET6 if network.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Sends nothing: the kernel picks the address that it would use.
            probe.connect((str(network.network_address + 1), 9))
            found = ipaddress.ip_address(probe.getsockname()[0])
    except OSError:  # also where no descriptor is left: it may have one the next time
        return None
    return str(found) if found in network else None


def default_instance_id(service: str, host: str, port: int) -> str:
    """`<service>-<host>-<port>`; `<service>-<host name>` where the host is every address, which tells no instances apart."""
    if host in WILDCARDS:
        return f"{service}-{socket.gethostname()}"
    return f"{service}-{host.replace(':', '.')}-{port}"


def grpc_name(name: str) -> str:
    """What a service, or an instance, is called in Consul where it speaks gRPC."""
    return f"{name}-grpc"
