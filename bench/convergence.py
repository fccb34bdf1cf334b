"""(d) How long after Consul shows a change the edge has followed it, seen by a client."""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.edge import Edge, controlled_edge
from bench.programs import wait_until
from bench.results import Figure, Result, quantile
from bench.rivals import upstream
from tests.support import servers
from tests.support.wire import Wire

SERVICE = "probe"
STANDBY = "probe-standby"
CHANGES = 50
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Watcher:
    """Follows one service in Consul by blocking queries: instance id → when it was first seen passing, and first missed."""

    def __init__(self, address: str, service: str) -> None:
        self._url = f"http://{address}/v1/health/service/{service}?passing=1&wait=5s"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.seen: dict[str, float] = {}
        self.gone: dict[str, float] = {}

    def _follow(self) -> None:
        index, present = "0", set()
        while not self._stop.is_set():
            with _OPENER.open(f"{self._url}&index={index}", timeout=15) as answer:
                now = time.monotonic()
                index = answer.headers["X-Consul-Index"]
                found = {entry["Service"]["ID"] for entry in json.load(answer)}
            self.seen |= dict.fromkeys(found - present, now)
            self.gone |= dict.fromkeys(present - found, now)
            present = found

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(12)


class Prober:
    """Asks the edge once a millisecond: instance id → when its first and its last answer came; `failed` counts the rest."""

    def __init__(self, port: int, path: str) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._wire = Wire("127.0.0.1", port, 5)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.failed = 0
        self.latest = ""

    def _ask(self) -> None:
        while not self._stop.wait(0.001):
            reply = self._wire.exchange(self._request)
            now = time.monotonic()
            name = reply.headers.get("x-served-by", "")
            if reply.status != 200:
                self.failed += 1
                continue
            self.first.setdefault(name, now)
            self.last[name] = now
            self.latest = name

    def __enter__(self) -> Prober:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(6)


def register(consul: servers.ConsulServer, instance: str, address: str, port: int, *, backup: bool) -> None:
    """Register a probe instance whose check already passes; the edge checks it itself at /health/probe."""
    meta = {
        "edge-path": f"/api/{SERVICE}",
        "edge-auth": "public",
        "edge-check": f"/health/{SERVICE}",
        "edge-backup": "true" if backup else "false",
    }
    body = {
        "ID": instance,
        "Name": SERVICE,
        "Address": address,
        "Port": port,
        "Meta": meta,
        "Check": {"CheckID": f"check:{instance}", "Name": "alive", "TTL": "3600s", "Status": "passing"},
    }
    consul.call("PUT", "/v1/agent/service/register", body)


@contextlib.contextmanager
def environment() -> Iterator[tuple[Path, servers.ConsulServer, int]]:
    """A folder, a Consul, and an upstream's port."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        folder.chmod(0o755)
        consul = stack.enter_context(servers.consul(folder))
        yield folder, consul, stack.enter_context(upstream(folder))


def follow_changes(
    consul: servers.ConsulServer, edge: Edge, port: int, changes: int
) -> tuple[list[float], list[float], int]:
    """Register and deregister `changes` instances one after the other; (joining ms, leaving ms, failed answers).

    A standby with `edge-backup` answers while none of them is there, so that the first and the last answer of
    each stand out: no other instance takes turns with it.
    """
    register(consul, STANDBY, "127.0.0.1", port, backup=True)
    path = f"/api/{SERVICE}/1"
    wait_until("the standby answers through the edge", lambda: _answers(edge.port, path), 60)
    joining, leaving = [], []
    with Watcher(consul.address, SERVICE) as watcher, Prober(edge.port, path) as prober:
        for number in range(changes):
            name = f"probe-{number}"
            register(consul, name, "127.0.0.1", port, backup=False)
            wait_until(
                f"{name} answers", lambda name=name: name in prober.first and name in watcher.seen, 20, 0.005
            )
            joining.append(max(prober.first[name] - watcher.seen[name], 0) * 1000)
            time.sleep(0.1)
            consul.call("PUT", f"/v1/agent/service/deregister/{name}")
            wait_until(
                f"{name} has left",
                lambda name=name: name in watcher.gone and prober.latest == STANDBY,
                20,
                0.005,
            )
            leaving.append(max(prober.last[name] - watcher.gone[name], 0) * 1000)
            time.sleep(0.1)
        return joining, leaving, prober.failed


def _answers(port: int, path: str) -> bool:
    wire = Wire("127.0.0.1", port, 2)
    try:
        return wire.exchange(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).status == 200
    finally:
        wire.close()


def change_rows(**series: Sequence[float]) -> tuple[tuple[str, ...], ...]:
    """Table rows of latencies in ms: name, count, median, p90, p99, highest."""
    return tuple(
        (
            name,
            str(len(ms)),
            *(f"{v:.1f}" for v in (statistics.median(ms), quantile(ms, 0.9), quantile(ms, 0.99), max(ms))),
        )
        for name, ms in series.items()
    )


COLUMNS = ("", "changes", "p50 ms", "p90 ms", "p99 ms", "max ms")


def one_after_the_other(_rounds: int, _seconds: float) -> Result:
    """Part (d): 50 instances join and leave one after the other."""
    with environment() as (folder, consul, port), controlled_edge(folder, consul.address) as (edge, _):
        joining, leaving, failed = follow_changes(consul, edge, port, CHANGES)
    return Result(
        "d",
        "from Consul's word to the edge's answer",
        (
            Figure("joining, p99", quantile(joining, 0.99), "ms", 25, at_least=False),
            Figure("leaving, p99", quantile(leaving, 0.99), "ms", 25, at_least=False),
            Figure("failed answers meanwhile", failed, "", 0, at_least=False),
        ),
        {"joining_ms": joining, "leaving_ms": leaving},
        COLUMNS,
        change_rows(joining=joining, leaving=leaving),
    )
