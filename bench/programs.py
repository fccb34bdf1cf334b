"""Servers for a benchmark: started on free ports, pinned to a core, ended with their context."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from tests.support.servers import Process, accepts

# Two cores: what is measured has one for itself, everything that feeds it shares the other.
MEASURED_CORE = 0
FEEDING_CORE = 1


def pinned(core: int, arguments: Sequence[str]) -> list[str]:
    """The command line that keeps a program on one core, where the machine has that many."""
    if core >= len(os.sched_getaffinity(0)):
        return list(arguments)
    return ["taskset", "-c", str(core), *arguments]


def wait_until(what: str, predicate: Callable[[], bool], within_s: float, every_s: float = 0.02) -> None:
    """Raises TimeoutError naming `what` when the predicate has not come true in time."""
    deadline = time.monotonic() + within_s
    while not predicate():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_s} s")
        time.sleep(every_s)


@contextlib.contextmanager
def program(
    arguments: Sequence[str],
    log: Path,
    *,
    port: int | None = None,
    within_s: float = 120,
    env: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """Run a program with its output in `log`; yields once it listens on `port`.

    Raises AssertionError with the log's end when it dies first, TimeoutError when it never listens.
    """
    process = Process(arguments, log, env=None if env is None else {**os.environ, **env})

    def up() -> bool:
        process.must_run()
        return port is None or accepts(port)

    process.start()
    try:
        wait_until(f"{' '.join(arguments[-3:])} on port {port}, {log}", up, within_s)
        yield process
    finally:
        process.stop()


def tree(pid: int) -> list[psutil.Process]:
    """The process and all of its descendants that are alive."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def cpu_s(pid: int) -> float:
    """Processor seconds, user and system, that the process and its living descendants have used."""
    total = 0.0
    for member in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            used = member.cpu_times()
            total += used.user + used.system
    return total


def memory_mb(pid: int) -> tuple[float, float]:
    """(resident now, highest ever) of one process, in MB of 10^6 bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    now, peak = (int(values[key].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "VmHWM"))
    return now, peak


def connections_to(pid: int, port: int) -> int:
    """How many established TCP connections the process and its descendants hold to that local port."""
    count = 0
    for member in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            open_ones = (
                each for each in member.net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED
            )
            count += sum(bool(each.raddr) and each.raddr.port == port for each in open_ones)
    return count
