"""The processes of one stack, found by a mark in their environment, and signals to them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from stack import STACK_MARK


def lives(process: psutil.Process) -> bool:
    """Whether it is still there and the same; one that only waits to be reaped (a zombie) is not."""
    try:
        return process.is_running() and process.status() not in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
    except psutil.NoSuchProcess:
        return False


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP holds the process."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def of_stack(var: Path) -> list[psutil.Process]:
    """Every process of the stack whose folder is `var`."""
    return [one for one in psutil.process_iter() if _mark(one) == str(var) and lives(one)]


def tree(pid: int) -> list[psutil.Process]:
    """The process, the rest of the group that it leads, and all that descends from these."""
    found: set[psutil.Process] = set()
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if one.pid == pid or os.getpgid(one.pid) == pid:
                found |= {one, *one.children(recursive=True)}
    return [one for one in found if lives(one)]


def send(number: int, processes: Iterable[psutil.Process]) -> None:
    """Send the signal to each that is still the process it was."""
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(number)


def wait_gone(processes: Iterable[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Wait until they have ended, and return those that have not after `within_s`.

    psutil's own wait would take the exit status of our children away from `subprocess`.
    """
    until = time.monotonic() + within_s
    while (left := [one for one in processes if lives(one)]) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def end(processes: Iterable[psutil.Process], within_s: float) -> None:
    """SIGTERM (woken first where stopped), then SIGKILL for what is left after `within_s`."""
    left = list(processes)
    send(signal.SIGCONT, left)
    send(signal.SIGTERM, left)
    left = wait_gone(left, within_s)
    send(signal.SIGKILL, left)
    wait_gone(left, 5.0)


def _mark(process: psutil.Process) -> str | None:
    try:
        mark: str | None = process.environ().get(STACK_MARK)
    except (psutil.Error, OSError):
        return None
    return mark
