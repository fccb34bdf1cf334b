"""What HAProxy says it is doing: the parsers of `show servers state` and `show stat`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import Literal

# Ref: HAProxy 2.6, include/haproxy/server-t.h (SRV_ADMF_*) and check-t.h (CHK_ST_ENABLED).
_MAINTENANCE = 0x01 | 0x02 | 0x04 | 0x20 | 0x40
_DRAIN = 0x08 | 0x10
_CHECK_ENABLED = 0x04

Mode = Literal["ready", "drain", "maint"]


@dataclass(frozen=True, slots=True)
class ObservedServer:
    """One server as HAProxy has it. `mode` is what it was ordered, `up` what its checks say.

    `checked`: whether its checks run; `sessions` counts requests under way, not idle connections.
    """

    name: str
    address: str
    port: int
    weight: int
    backup: bool
    mode: Mode
    up: bool
    checked: bool
    sessions: int

    @property
    def serves(self) -> bool:
        return self.up and self.mode == "ready"

    @property
    def status(self) -> str:
        """UP, DOWN, DRAIN or MAINT."""
        if self.mode != "ready":
            return self.mode.upper()
        return "UP" if self.up else "DOWN"


def observed_servers(state: str, stat: str) -> dict[str, dict[str, ObservedServer]]:
    """Join both answers: backend → server name → server. A server that only one of them knows is left out."""
    details = _stat_rows(stat)
    backends: dict[str, dict[str, ObservedServer]] = {}
    for row in _state_rows(state):
        backend, name = row["be_name"], row["srv_name"]
        detail = details.get((backend, name))
        if detail is None:
            continue
        admin = int(row["srv_admin_state"])
        mode: Mode = "maint" if admin & _MAINTENANCE else "drain" if admin & _DRAIN else "ready"
        backends.setdefault(backend, {})[name] = ObservedServer(
            name=name,
            address=row["srv_addr"],
            port=int(row["srv_port"]),
            weight=int(row["srv_uweight"]),
            backup=detail[1],
            mode=mode,
            up=row["srv_op_state"] != "0",
            checked=bool(int(row["srv_check_state"]) & _CHECK_ENABLED),
            sessions=detail[0],
        )
    return backends


def down_lines(state: str) -> str:
    """A server state file of those servers only that are down by HAProxy's own checks, and not by an order.

    A reload would otherwise take them for up until a first check, and send them requests.
    """
    head = [line for line in state.splitlines()[:2] if line == "1" or line.startswith("#")]
    rows = (line.split(" ") for line in state.splitlines()[2:])
    down = [" ".join(row) for row in rows if len(row) > 6 and row[5] == "0" and row[6] == "0"]
    return "\n".join([*head, *down]) + "\n"


def _state_rows(text: str) -> list[dict[str, str]]:
    names: list[str] = []
    rows = []
    for line in text.splitlines():
        if line.startswith("# "):
            names = line[2:].split(" ")
        elif names and line.count(" ") >= len(names) - 1:
            rows.append(dict(zip(names, line.split(" "), strict=False)))
    return rows


def _stat_rows(text: str) -> dict[tuple[str, str], tuple[int, bool]]:
    """(backend, server) → (current sessions with those in the queue, is a backup)."""
    lines = text.lstrip().removeprefix("# ").splitlines()
    reader = csv.reader(lines)
    header = next(reader, [])
    if "svname" not in header:
        return {}
    backend, server, current, queued, backup, kind = (
        header.index(name) for name in ("pxname", "svname", "scur", "qcur", "bck", "type")
    )
    return {
        (row[backend], row[server]): (int(row[current] or 0) + int(row[queued] or 0), row[backup] == "1")
        for row in reader
        if len(row) > kind and row[kind] == "2"
    }
