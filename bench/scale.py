"""(e) 1,000 services with 10,000 instances: what the controller holds, and how fast it follows one change among them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.convergence import COLUMNS, change_rows, environment, follow_changes
from bench.edge import controlled_edge
from bench.programs import connections_to, memory_mb, wait_until
from bench.results import Figure, Result, quantile
from tests.support import servers

SERVICES = 1_000
INSTANCES_EACH = 10
CHANGES = 30
NODE = "bench-fleet"
WRITERS = 8


def _entries() -> Iterator[dict[str, object]]:
    """Catalog entries that make the fleet: addresses in 127.64.0.0/10, where nothing listens."""
    for number in range(SERVICES * INSTANCES_EACH):
        service, instance = f"fleet-{number // INSTANCES_EACH:04d}", f"fleet-{number:05d}"
        yield {
            "Node": NODE,
            "Address": "127.64.0.1",
            "Service": {
                "ID": instance,
                "Service": service,
                "Address": f"127.{64 + number // 62_500}.{number // 250 % 250}.{number % 250 + 1}",
                "Port": 9000,
                "Meta": {"edge-path": f"/api/{service}", "edge-auth": "public"},
            },
            "Check": {
                "Node": NODE,
                "CheckID": f"check:{instance}",
                "Name": "alive",
                "Status": "passing",
                "ServiceID": instance,
            },
        }


def _fill(consul: servers.ConsulServer) -> float:
    """Put the fleet into the catalog; seconds that it took."""
    start = time.monotonic()
    with ThreadPoolExecutor(WRITERS) as writers:
        for _ in writers.map(lambda entry: consul.call("PUT", "/v1/catalog/register", entry), _entries()):
            pass
    return time.monotonic() - start


def servers_in_edge(run_dir: Path) -> int:
    """How many servers HAProxy holds, by its Runtime API; 0 while it does not answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(run_dir / "haproxy.sock"))
            connection.sendall(b"show servers state\n")
            data = b"".join(iter(lambda: connection.recv(1 << 20), b""))
        except OSError:
            return 0
    return sum(b" fleet-" in line for line in data.splitlines())


def thousand_services(_rounds: int, _seconds: float) -> Result:
    """Part (e)."""
    total = SERVICES * INSTANCES_EACH
    with environment() as (folder, consul, port):
        filled_s = _fill(consul)
        start = time.monotonic()
        with controlled_edge(folder, consul.address) as (edge, controller):
            wait_until(
                "the first full sync", lambda: servers_in_edge(edge.settings.edge_run_dir) >= total, 180, 0.1
            )
            first_sync_s = time.monotonic() - start
            time.sleep(2)
            joining, leaving, failed = follow_changes(consul, edge, port, CHANGES)
            connections = connections_to(controller, consul.http_port)
            now_mb, peak_mb = memory_mb(controller)
    changes = [*joining, *leaving]
    return Result(
        "e",
        f"{SERVICES:,} services with {total:,} instances",
        (
            Figure("connections to Consul", connections, "", 10, at_least=False),
            Figure("memory of the controller, peak", peak_mb, "MB", 200, at_least=False),
            Figure("one change, p99", quantile(changes, 0.99), "ms", 250, at_least=False),
            Figure("first full sync", first_sync_s, "s"),
            Figure("failed answers meanwhile", failed, "", 0, at_least=False),
        ),
        {
            "joining_ms": joining,
            "leaving_ms": leaving,
            "first_sync_s": first_sync_s,
            "filling_consul_s": filled_s,
            "memory_mb": {"now": now_mb, "peak": peak_mb},
            "connections": connections,
        },
        COLUMNS,
        change_rows(joining=joining, leaving=leaving),
    )
