"""Which ports are free, and which program holds one that is not. `python -m stack.run.ports`: those of the stack that are held, as JSON."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import socket
from collections.abc import Iterable, Mapping

import psutil

from stack import PORT_HOLDERS

DEFAULTS = {
    "EDGE_HTTP_PORT": 8080,
    "EDGE_HTTPS_PORT": 8443,
    "STATS_PORT": 8404,
    "CONTROLLER_PORT": 8405,
    "CONSUL_HTTP_PORT": 8500,
    "CONSUL_DNS_PORT": 8600,
    "CONSUL_SERVER_PORT": 8300,
    "CONSUL_SERF_PORT": 8301,
    "REDIS_CACHE_PORT": 6390,
    "REDIS_STATE_PORT": 6391,
    "MAIL_PORT": 8025,
    "RABBITMQ_PORT": 6392,
    "RABBITMQ_DIST_PORT": 6393,
    "RABBITMQ_EPMD_PORT": 6394,
}
"""Variable → port, for every port that is not an instance's."""

# Below Linux's default range for outgoing connections, which would take them by chance.
_FIRST, _LAST = 21000, 32000


_ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::"))  # noqa: S104  (probes)


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now, on loopback and on every address."""
    return all(_can_bind(family, host, port) for family, host in _ADDRESSES)


def _can_bind(family: socket.AddressFamily, host: str, port: int) -> bool:
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((host, port))
    except OSError as error:
        # A machine without IPv6 has no such address.
        return family == socket.AF_INET6 and error.errno != errno.EADDRINUSE
    return True


def free_ports(count: int) -> list[int]:
    """`count` different ports that are free now, chosen at random so that two callers seldom meet."""
    return _first_free(count, random.sample(range(_FIRST, _LAST), min(_LAST - _FIRST, count * 50)))


def free_block(size: int) -> int:
    """The first of `size` neighbouring ports, half of which at least are likely to be free: a base for instances."""
    return random.randrange(10000, 20000 - size, size)


def assign(count: int, base: int, taken: Iterable[int]) -> list[int]:
    """The first `count` free ports from `base` on that are not in `taken`. Raises OSError when there are not so many."""
    refused = set(taken)
    return _first_free(count, (port for port in range(base, min(base + 10000, 65536)) if port not in refused))


def _first_free(count: int, candidates: Iterable[int]) -> list[int]:
    found = list(itertools.islice(filter(is_free, candidates), count))
    if len(found) < count:
        raise OSError(f"there are fewer than {count} free ports")
    return found


def holders(environment: Mapping[str, str]) -> dict[int, str]:
    """The stack's ports that are held, and by which program: for `PORT_HOLDERS`."""
    wanted = (environment.get(name) or str(port) for name, port in DEFAULTS.items())
    known = (int(port) for port in wanted if port.isdigit() and int(port) < 65536)
    return {port: holder(port) for port in known if not is_free(port)}


def holder(port: int) -> str:
    """The program that listens on the port, in words: `nginx (pid 12, user www-data)`; less where we may not see it."""
    seen_by_root = json.loads(os.environ.get(PORT_HOLDERS) or "{}")
    if str(port) in seen_by_root:
        return str(seen_by_root[str(port)])
    listening = [
        one
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port
    ]
    for one in listening:
        if one.pid is not None:
            process = psutil.Process(one.pid)
            return f"{process.name()} (pid {one.pid}, user {process.username()})"
    if listening:
        return f"a program of another user (to see which: sudo ss -ltnp 'sport = :{port}')"
    return "a program that does not listen (yet)"


if __name__ == "__main__":
    print(json.dumps(holders(os.environ)))
