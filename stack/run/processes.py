"""The processes of one stack, found in /proc by a mark in their environment. Linux only."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stack import STACK_MARK


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One live process. `started` is in clock ticks since boot: with the pid it names one process for good."""

    pid: int
    parent: int
    group: int
    session: int
    state: str
    started: int
    name: str


def read(pid: int) -> ProcessInfo | None:
    """What /proc says of the pid; None when it is gone or only waits to be reaped (a zombie)."""
    try:
        text = (Path("/proc") / str(pid) / "stat").read_text()
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    if fields[0] in "ZX":
        return None
    return ProcessInfo(pid, int(fields[1]), int(fields[2]), int(fields[3]), fields[0], int(fields[19]), name)


def all_processes() -> list[ProcessInfo]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [info for info in map(read, pids) if info is not None]


def of_stack(var: Path) -> list[ProcessInfo]:
    """Every process of the stack whose folder is `var`."""
    mark = f"{STACK_MARK}={var}".encode()
    return [p for p in all_processes() if mark in _environ(p.pid)]


def tree(pid: int) -> list[ProcessInfo]:
    """The process, what descends from it, and what else is in the process group that it leads."""
    live = all_processes()
    found = {pid}
    grew = True
    while grew:
        more = {p.pid for p in live if p.parent in found or p.group == pid} - found
        grew = bool(more)
        found |= more
    return [p for p in live if p.pid in found]


def send(number: int, processes: Iterable[ProcessInfo]) -> None:
    """The signal to each of them that is still the process it was."""
    for one in processes:
        now = read(one.pid)
        if now is not None and now.started == one.started:
            try:
                os.kill(one.pid, number)
            except ProcessLookupError:
                continue


def wait_gone(processes: Iterable[ProcessInfo], within_s: float) -> list[ProcessInfo]:
    """Wait until they have ended, and return those that have not after `within_s`."""
    left = list(processes)
    until = time.monotonic() + within_s
    while left:
        left = [p for p in left if (now := read(p.pid)) is not None and now.started == p.started]
        if not left or time.monotonic() >= until:
            break
        time.sleep(0.02)
    return left


def end(processes: Iterable[ProcessInfo], within_s: float) -> None:
    """SIGTERM (woken first where stopped), then SIGKILL for what is left after `within_s`."""
    left = list(processes)
    send(signal.SIGCONT, left)
    send(signal.SIGTERM, left)
    left = wait_gone(left, within_s)
    send(signal.SIGKILL, left)
    wait_gone(left, 5.0)


def _environ(pid: int) -> list[bytes]:
    try:
        return (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
