"""Starts `program.py` as a process of its own, with a clean environment."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.support.eventually import eventually, time_scale
from tests.support.servers import Process, accepts, free_port

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = Path(__file__).with_name("program.py")
TOKEN_PROGRAM = Path(__file__).with_name("token_program.py")


@dataclass
class Running:
    """One instance. `exit_code` waits for its end."""

    port: int
    process: Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **options: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(self.url + path, timeout=15, **options)

    def ready(self) -> bool:
        return self.get("/health/ready").status_code == 200

    def exit_code(self, within_s: float) -> int:
        assert self.process.popen is not None
        return self.process.popen.wait(within_s * time_scale())

    def signal(self, number: int) -> None:
        """To the master alone, as a supervisor does."""
        os.kill(self.process.pid, number)

    def lines(self) -> list[dict[str, Any]]:
        """The log lines so far; fails when one is not JSON."""
        return [json.loads(line) for line in self.process.log.read_text().splitlines()]

    def events(self) -> list[str]:
        return [line["event"] for line in self.lines()]


@contextlib.contextmanager
def running(
    folder: Path, *, wait: bool = True, port: int | None = None, program: Path = PROGRAM, **env: str
) -> Iterator[Running]:
    """An instance of `program`; every variable of the kit comes from `env` alone."""
    own = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TEST_TIME_SCALE")}
    port = port or free_port()
    variables = {
        **own,
        "PYTHONPATH": str(ROOT),
        "PORT": str(port),
        "DATA_DIR": str(folder),
        "CONSUL_HTTP_ADDR": "127.0.0.1:1",
        "DRAIN_DELAY_S": "0.5",
        "DRAIN_TIMEOUT_S": "5",
        **env,
    }
    process = Process([sys.executable, str(program)], folder / f"hello-{port}.log", env=variables)
    instance = Running(port, process)
    process.start()
    try:
        if wait:
            eventually(lambda: (accepts(port) and instance.ready()) or not process.running, 30, every_s=0.05)
            process.must_run()
        yield instance
    finally:
        process.stop()
