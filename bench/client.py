"""What one call to an instance costs the caller: `python -m bench.client [--gevent] [--rounds N] [--calls N]`.

Processor time of this process, user and system, for a GET of 200 bytes over a connection that is kept; the server is nginx on
the other core. The candidates take turns, so that a busy machine is as bad for one as for the next. Part of no run of `make bench`.
"""

from __future__ import annotations

import sys

if "--gevent" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

import argparse
import contextlib
import http.client
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests
import urllib3

from bench.programs import MEASURED_CORE
from bench.rivals import BODY, upstream
from discovery import Instance, ServiceClient, StaticView

PATH = "/api/public/1"
# What a gateway passes on.
HEADERS = {
    "Accept": "application/json",
    "User-Agent": "bench",
    "X-Request-ID": "0123456789abcdef0123",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "X-Forwarded-For": "192.0.2.1",
}

Call = Callable[[], bytes]


def service_client(port: int, *, stream: bool) -> Call:
    """ServiceClient over three instances, with all that it does: breaker, budget, ejection, balancing."""
    instances = [Instance("users", f"users-{n}", "node-1", "127.0.0.1", port) for n in range(3)]
    client = ServiceClient(StaticView(instances))
    return lambda: client.request("GET", "users", PATH, headers=HEADERS, stream=stream).data


def urllib3_pool(port: int) -> Call:
    pool = urllib3.HTTPConnectionPool("127.0.0.1", port, maxsize=16, retries=False, timeout=5)
    return lambda: pool.request("GET", PATH, headers=HEADERS).data


def http_client(port: int) -> Call:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)

    def call() -> bytes:
        connection.request("GET", PATH, headers=HEADERS)
        return connection.getresponse().read()

    return call


def requests_session(port: int) -> Call:
    session = requests.Session()
    session.trust_env = False
    return lambda: session.get(f"http://127.0.0.1:{port}{PATH}", headers=HEADERS, timeout=5).content


@contextlib.contextmanager
def candidates() -> Iterator[dict[str, Call]]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with upstream(folder) as port:
            yield {
                "ServiceClient": service_client(port, stream=False),
                "ServiceClient, streamed": service_client(port, stream=True),
                "http.client, one connection": http_client(port),
                "urllib3, pool": urllib3_pool(port),
                "requests, session": requests_session(port),
            }


def cpu_us(call: Call, calls: int) -> float:
    """Microseconds of processor a call. Raises RuntimeError for an answer that is not the right one."""
    began = time.process_time()
    for _ in range(calls):
        if call() != BODY.encode():
            raise RuntimeError("a wrong answer")
    return (time.process_time() - began) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gevent", action="store_true", help="with gevent's patches")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=500, help="a round and candidate")
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(0, {MEASURED_CORE})
    with candidates() as calls:
        samples: dict[str, list[float]] = {name: [cpu_us(call, 50)] for name, call in calls.items()}
        for series in samples.values():
            series.clear()  # that was to warm up
        for _ in range(arguments.rounds):
            for name, call in calls.items():
                samples[name].append(cpu_us(call, arguments.calls))
    middles = {name: statistics.median(series) for name, series in samples.items()}
    first = next(iter(middles.values()))
    print(f"{'':32}{'µs a call':>10}{'ratio':>8}{'least':>8}{'most':>8}")
    for name, middle in middles.items():
        series = samples[name]
        print(f"{name:32}{middle:10.0f}{middle / first:8.2f}{min(series):8.0f}{max(series):8.0f}")


if __name__ == "__main__":
    main()
