"""The Makefile hands values over as they are: none of them is a command."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TRICKS = [
    "users; touch here",
    '"; touch here; "',
    "'; touch here; '",
    "$(touch here)",
    "$(shell touch here)",
    "`touch here`",
    "$$(touch here)",
    "it's",
    "a b",
]


TARGETS = [
    ("token", "SERVICE"),
    ("kill", "SERVICE"),
    ("kill", "N"),
    ("logs", "LINES"),
    ("run", "FILE"),
    ("dead-letters", "ID"),
]


@pytest.mark.parametrize(
    ("target", "variable", "trick"),
    [("token", "SERVICE", trick) for trick in TRICKS]
    + [(*target, "it's $(shell touch here)") for target in TARGETS],
)
def test_value_stays_one_word(tmp_path: Path, target: str, variable: str, trick: str) -> None:
    words = ["make", "-f", str(ROOT / "Makefile"), target, "PYTHON=printf '[%s]'", f"{variable}={trick}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert f"[{trick}]" in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "here").exists()
