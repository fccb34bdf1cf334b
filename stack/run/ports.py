"""Which ports are free, and which program holds one that is not, from /proc. `python -m stack.run.ports`: those of the stack that are held."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pwd
import random
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

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
}
"""Variable → port, for every port that is not an instance's."""

_FIRST, _LAST = (
    21000,
    32000,
)  # below Linux's default range for outgoing connections, which would take them by chance
_LISTEN = "0A"  # include/net/tcp_states.h


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now, on loopback and on every address."""
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104  (a probe, closed at once)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return not _listening_inodes(port)


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
    """Which program listens on the port, in words: `nginx (pid 12, user www-data)`; less where /proc does not show it."""
    seen_by_root = json.loads(os.environ.get(PORT_HOLDERS) or "{}")
    if str(port) in seen_by_root:
        return str(seen_by_root[str(port)])
    inodes = _listening_inodes(port)
    if not inodes:
        return "a program that does not listen (yet)"
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _holds(process, set(inodes)):
            name = (process / "comm").read_text().strip()
            return f"{name} (pid {process.name}, user {_user(process.stat().st_uid)})"
    uid = next(iter(inodes.values()))
    return f"a program of user {_user(uid)} (to see which: sudo ss -ltnp 'sport = :{port}')"


def _listening_inodes(port: int) -> dict[str, int]:
    """Socket inode → user id, of every TCP socket that listens on the port."""
    found: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found[fields[9]] = int(fields[7])
    return found


def _holds(process: Path, inodes: set[str]) -> bool:
    names = {f"socket:[{inode}]" for inode in inodes}
    try:
        entries = list((process / "fd").iterdir())
    except OSError:
        return False
    for entry in entries:
        # Closed meanwhile: the one that the list was read by, if it is our own.
        with contextlib.suppress(OSError):
            if os.readlink(entry) in names:  # noqa: PTH115
                return True
    return False


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


if __name__ == "__main__":
    print(json.dumps(holders(os.environ)))
