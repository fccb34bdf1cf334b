"""Finding and ending processes, on real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stack import STACK_MARK
from stack.run import processes
from tests.support.eventually import eventually

Spawn = Callable[..., subprocess.Popen[bytes]]

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
PARENT = (
    "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('on', flush=True); sys.stdin.read()"
)


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    started: list[subprocess.Popen[bytes]] = []

    def start(argv: list[str], **options: object) -> subprocess.Popen[bytes]:
        popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)  # type: ignore[call-overload]
        started.append(popen)
        return popen

    yield start
    for popen in started:
        processes.send(signal.SIGKILL, processes.tree(popen.pid))
        popen.communicate(timeout=10)


def test_mark_finds_a_process_and_the_children_it_made(spawn: Spawn, tmp_path: Path) -> None:
    spawn(["sleep", "60"])
    marked = spawn([sys.executable, "-c", PARENT], env={**os.environ, STACK_MARK: str(tmp_path)})
    assert marked.stdout is not None
    marked.stdout.readline()
    found = eventually(
        lambda: (
            [p for p in processes.of_stack(tmp_path) if p.name() == "sleep"] and processes.of_stack(tmp_path)
        ),
        5,
    )
    assert {p.pid for p in found} > {marked.pid}
    assert len(found) == 2


def test_mark_of_a_neighbouring_folder_is_not_ours(spawn: Spawn, tmp_path: Path) -> None:
    other = spawn(["sleep", "60"], env={**os.environ, STACK_MARK: f"{tmp_path}-2"})
    assert processes.lives(psutil.Process(other.pid))
    assert processes.of_stack(tmp_path) == []


def test_tree_holds_orphans_of_the_group(spawn: Spawn) -> None:
    leader = spawn(["sh", "-c", "sleep 60 & (sleep 60 &) ; wait"], start_new_session=True)

    def names() -> list[str]:
        return sorted(one.name() for one in processes.tree(leader.pid))

    # Not just three of them: the shell between is there for a moment before the orphan is.
    eventually(lambda: names() == ["sh", "sleep", "sleep"], 5)


def test_zombie_counts_as_gone(spawn: Spawn) -> None:
    popen = spawn(["true"])
    process = psutil.Process(popen.pid)
    eventually(lambda: not processes.lives(process), 5)
    assert popen.poll() == 0


def test_end_kills_what_ignores_sigterm(spawn: Spawn) -> None:
    popen = spawn([sys.executable, "-c", STUBBORN])
    assert popen.stdout is not None
    popen.stdout.readline()
    processes.end(processes.tree(popen.pid), within_s=0.3)
    assert popen.wait(5) == -signal.SIGKILL


def test_end_wakes_what_is_stopped(spawn: Spawn) -> None:
    popen = spawn(["sleep", "60"])
    popen.send_signal(signal.SIGSTOP)
    eventually(lambda: processes.is_stopped(popen.pid), 5)
    processes.end(processes.tree(popen.pid), within_s=5)
    assert popen.wait(5) == -signal.SIGTERM
