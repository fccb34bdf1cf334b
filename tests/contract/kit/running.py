"""Starts `program.py` as a process of its own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.instances import RunningInstance, instance

PROGRAM = Path(__file__).with_name("program.py")
TOKEN_PROGRAM = Path(__file__).with_name("token_program.py")


@contextlib.contextmanager
def running(
    folder: Path,
    *,
    wait: bool = True,
    port: int | None = None,
    program: Path = PROGRAM,
    arguments: Sequence[str] = (),
    **env: str,
) -> Iterator[RunningInstance]:
    """An instance of `program`, which finds no Consul unless `env` names one."""
    settings = {"CONSUL_HTTP_ADDR": "127.0.0.1:1", "DRAIN_DELAY_S": "0.5", "DRAIN_TIMEOUT_S": "5", **env}
    argv = [sys.executable, str(program), *arguments]
    with instance("hello", folder, settings, argv=argv, port=port, wait=wait) as one:
        yield one
