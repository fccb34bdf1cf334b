"""The generated code of `services/users/proto` is what its proto says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = "services/users/proto"


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *out, f"{FOLDER}/users.proto"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    made = {file.name: file.read_text() for file in (tmp_path / FOLDER).iterdir()}
    kept = {file.name: file.read_text() for file in (ROOT / FOLDER).glob("users_pb2*.py*")}
    assert made == kept, "after a change of a proto, the command that it names makes them anew"
