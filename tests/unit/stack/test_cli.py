"""The commands' answers to bad input: a message that says what to do, an exit status, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stack.__main__ import main, up
from stack.errors import StackError
from stack.settings import REPO, StackSettings
from tests.support.commands import run_here


def stack(var: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run_here(main, *words, env={**os.environ, "BREAKWATER_VAR": str(var)}, cwd=var)


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("seed",),
        ("plan",),
        ("dead-letters",),
        ("kill", "--service", "users"),
        ("stop", "--service", "users"),
        ("start", "--service", "users"),
        ("scale", "--service", "users", "--number", "3"),
        ("token", "users"),
        ("run", "x.py", "--service", "hello"),
    ],
)
def test_command_that_needs_the_stack_says_so(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = stack(tmp_path, *words)
    assert done.returncode == 1
    assert "the stack is not running" in done.stderr
    assert "make up" in done.stderr
    assert "Traceback" not in done.stderr


def test_down_without_a_stack_is_harmless(tmp_path: Path) -> None:
    done = stack(tmp_path, "down")
    assert done.returncode == 0
    assert "was not running" in done.stdout


@pytest.mark.parametrize(
    "words", [("stop",), ("scale", "--service", "users"), ("kill", "--service", "users", "--number", "x")]
)
def test_missing_or_odd_arguments_are_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = stack(tmp_path, *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--" in done.stderr


@pytest.mark.parametrize("value", ["70000", "eighty"])
def test_port_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("STATS_PORT", value)
    done = stack(tmp_path, "status")
    assert done.returncode == 1
    assert f"STATS_PORT={value}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", [("stack", "up"), ("haproxy.controller", "init")])
def test_edge_setting_out_of_bounds_is_one_line(tmp_path: Path, program: tuple[str, str]) -> None:
    module, word = program
    environment = {**os.environ, "BREAKWATER_VAR": str(tmp_path), "PYTHONPATH": str(REPO)}
    environment |= {name: str(port) for name, port in StackSettings.isolated(tmp_path).fixed_ports.items()}
    done = subprocess.run(
        [sys.executable, "-m", module, word],
        env=environment | {"EDGE_RATE_SOURCE": "99999999", "EDGE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if "EDGE_RATE_SOURCE" in line)
    assert "EDGE_RATE_SOURCE=99999999: Input should be less than or equal to 10000000" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "secrets").exists()


def test_logs_before_any_start_say_so(tmp_path: Path) -> None:
    done = stack(tmp_path, "logs")
    assert done.returncode == 1
    assert "there are no logs yet" in done.stderr


def test_root_is_sent_to_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(StackError, match="does not run as root"):
        up()
