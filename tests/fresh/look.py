"""Inside a process namespace that holds nothing but the stack: what runs, as which user, and what listens where.

`look.py` checks a running stack, `look.py --nothing` that no process is left, `look.py --supervisord` prints its pid.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

LISTEN = "0A"
EDGE = {os.environ.get("EDGE_HTTP_PORT", "8080"), os.environ.get("EDGE_HTTPS_PORT", "8443")}


def processes() -> dict[int, str]:
    """pid → command line, of all but this process and those above it."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if state not in "ZX":
            found[int(entry.name)] = command
    here = os.getpid()
    while here:
        found.pop(here, None)
        try:
            here = int(Path(f"/proc/{here}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def user_of(pid: int) -> int | None:
    """None for one that has ended."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except FileNotFoundError:
        return None


def listeners(pids: dict[int, str]) -> list[tuple[str, str]]:
    """(address in hexadecimal, port) of the sockets on which these processes listen."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                inodes.add(str(entry.readlink()))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                found.append((address, str(int(port, 16))))
    return found


def main() -> int:
    there = processes()
    if "--nothing" in sys.argv:
        for pid, command in there.items():
            print(f"   left: {pid} {command}")
        return 1 if there else 0
    if "--supervisord" in sys.argv:
        print(next(pid for pid, command in there.items() if "supervisor.supervisord" in command))
        return 0
    wrong = [f"{pid} runs as root: {cmd}" for pid, cmd in there.items() if user_of(pid) == 0]
    sockets = listeners(there)
    for address, port in sockets:
        if address not in ("0100007F", "00000000000000000000000001000000") and port not in EDGE:
            wrong.append(f"port {port} listens on {address}, beyond loopback")
    if EDGE - {port for _, port in sockets}:
        wrong.append(f"the edge does not listen on {EDGE}")
    for top in ("srv/breakwater", "home/dev/breakwater", "var/lib/breakwater"):
        for path in Path("/").joinpath(top).glob("**/var/secrets/**/*"):
            if path.is_file() and path.stat().st_mode & 0o077:
                wrong.append(f"{path} has mode {path.stat().st_mode & 0o777:o}")
    for line in wrong:
        print(f"   {line}")
    print(f"   {len(there)} processes, {len(sockets)} listening sockets")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
