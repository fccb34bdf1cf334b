"""Real instances of a service (`python -m services.<name>`) on free ports, for tests that need no edge."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.support.eventually import eventually, time_scale
from tests.support.servers import Process, free_port

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0


@dataclass
class RunningInstance:
    """One instance. `call` keeps its connection, `get` makes one of its own."""

    service: str
    port: int
    process: Process
    _client: requests.Session = field(default_factory=requests.Session)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        client: requests.Session | None = None,
    ) -> requests.Response:
        """One request, ended after 15 s."""
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {token}"
        session = client or self._client
        session.trust_env = False
        return session.request(
            method, self.url + path, json=json, headers=sent, params=params, timeout=15, allow_redirects=False
        )

    def get(self, path: str, **options: Any) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(self.url + path, timeout=15, **options)

    def ready(self) -> bool:
        return self.get("/health/ready").status_code == 200

    def start(self) -> None:
        """Start it (again) on the same port, and wait until it may take traffic."""
        self.process.start()

        def ready_or_ended() -> bool:
            try:
                return self.ready()
            except requests.RequestException:
                return not self.process.running

        try:
            eventually(ready_or_ended, START_S, every_s=0.05)
        except AssertionError as error:
            log = self.process.log.read_text(errors="replace")[-3000:]
            raise AssertionError(
                f"{self.service} at {self.port} does not become ready: {error}\n{log}"
            ) from error
        self.process.must_run()

    def signal(self, number: int) -> None:
        """To the master alone, as a supervisor does."""
        os.kill(self.process.pid, number)

    def exit_code(self, within_s: float) -> int:
        """Wait for its end."""
        assert self.process.popen is not None
        return self.process.popen.wait(within_s * time_scale())

    def kill(self) -> None:
        self.process.kill()

    def lines(self) -> list[dict[str, Any]]:
        """The log lines so far; fails when one is not JSON."""
        return [json.loads(line) for line in self.process.log.read_text().splitlines()]

    def events(self) -> list[str]:
        return [line["event"] for line in self.lines()]


@contextlib.contextmanager
def instance(
    service: str,
    folder: Path,
    env: Mapping[str, str],
    *,
    argv: Sequence[str] | None = None,
    port: int | None = None,
    wait: bool = True,
) -> Iterator[RunningInstance]:
    """An instance that keeps its data and its log in `folder`; what its kit is set to comes from `env` alone."""
    port = port or free_port()
    kept = ("PATH", "HOME", "TMPDIR", "TEST_TIME_SCALE")
    variables = {
        **{key: value for key, value in os.environ.items() if key in kept},
        "PYTHONPATH": str(ROOT),
        "PORT": str(port),
        "DATA_DIR": str(folder),
        "DRAIN_DELAY_S": "0.1",
        **env,
    }
    argv = argv or [sys.executable, "-m", f"services.{service}"]
    running = RunningInstance(service, port, Process(argv, folder / f"{service}-{port}.log", env=variables))
    try:
        if wait:
            running.start()
        else:
            running.process.start()
        yield running
    finally:
        running.process.stop()
        running._client.close()
