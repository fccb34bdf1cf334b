"""Real instances of a service (`python -m services.<name>`) on free ports, for tests that need no edge."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.support.eventually import eventually
from tests.support.servers import Process, free_port

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0


@dataclass
class RunningInstance:
    """One instance. `call` keeps its connection; make one `RunningInstance.client()` for each thread."""

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

    def ready(self) -> bool:
        return self.call("GET", "/health/ready").status_code == 200

    def start(self) -> None:
        """Start it (again) on the same port, and wait until it may take traffic."""
        self.process.start()

        def ready_or_ended() -> bool:
            try:
                return self.ready()
            except requests.RequestException:
                return not self.process.running

        eventually(ready_or_ended, START_S, every_s=0.05)
        self.process.must_run()

    def kill(self) -> None:
        self.process.kill()


@contextlib.contextmanager
def instance(service: str, folder: Path, env: Mapping[str, str]) -> Iterator[RunningInstance]:
    """An instance that keeps its data and its log in `folder`; `env` is added to a clean environment."""
    port = free_port()
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("CONSUL_", "REDIS_", "AUTH_", "DATABASE_", "SERVICE_"))
    }
    variables = {
        **clean,
        "PYTHONPATH": str(ROOT),
        "PORT": str(port),
        "DATA_DIR": str(folder),
        "DRAIN_DELAY_S": "0.1",
        **env,
    }
    argv = [sys.executable, "-m", f"services.{service}"]
    running = RunningInstance(service, port, Process(argv, folder / f"{service}-{port}.log", env=variables))
    try:
        running.start()
        yield running
    finally:
        running.process.stop()
        running._client.close()
