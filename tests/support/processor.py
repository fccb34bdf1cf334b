"""Processor time: what a thing would have taken on a machine of its own, worked out on one that others use."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """Seconds that all processors together have worked since boot. Ref: proc(5), /proc/stat."""
    user, nice, system, _, _, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def used_s(pids: Iterable[int]) -> float:
    """Seconds that these processes, and those of their children that have ended, have worked; gone ones count nothing."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_PER_S


def alone_s(wall_s: float, busy: float, own: float) -> float:
    """Of `wall_s` seconds, those that are left without what others took: `busy` all processors worked, `own` of it for us."""
    return wall_s - max(0.0, busy - own) / (os.cpu_count() or 1)
