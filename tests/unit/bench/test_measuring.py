"""The instruments of the benchmarks: what they read from wrk and of processes, and how they judge it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time

import psutil
import pytest

from bench.programs import connections_to, cpu_s, memory_mb, tree
from bench.results import Figure, quantile
from bench.wrk import Sample, failed_requests, median, quantile_ms

OUTPUT = """Running 2s test @ http://127.0.0.1:1/
  1 threads and 64 connections
  Latency Distribution
     50%  434.00us
     75%    1.20ms
     90%    2.51ms
     99%    1.02s
  280000 requests in 2.00s, 90.00MB read
  Socket errors: connect 1, read 2, write 3, timeout 4
  Non-2xx or 3xx responses: 90
Requests/sec: 140219.19
"""


def test_latencies_of_every_unit_come_out_in_ms() -> None:
    assert quantile_ms(OUTPUT, "50") == pytest.approx(0.434)
    assert quantile_ms(OUTPUT, "90") == pytest.approx(2.51)
    assert quantile_ms(OUTPUT, "99") == pytest.approx(1020)


def test_refusals_and_socket_errors_both_count_as_failed() -> None:
    assert failed_requests(OUTPUT) == 100
    assert failed_requests(OUTPUT.split("  Socket")[0]) == 0


def test_median_takes_each_figure_by_itself_and_sums_failures() -> None:
    samples = [Sample(rate, 1, 9, cpu, failed) for rate, cpu, failed in ((10, 3, 0), (30, 1, 2), (20, 2, 1))]
    assert median(samples) == Sample(20, 1, 9, 2, 3)


def test_quantile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(1, 51)]
    assert quantile(values, 0.5) == 25
    assert quantile(values, 0.99) == 50
    assert quantile([7.0], 0.99) == 7


@pytest.mark.parametrize(
    ("value", "at_least", "passed"),
    [(0.75, True, True), (0.74, True, False), (25, False, True), (25.1, False, False)],
)
def test_bound_itself_passes_and_what_lies_beyond_is_short(
    value: float, at_least: bool, passed: bool
) -> None:
    bound = 0.75 if at_least else 25
    assert Figure("x", value, bound=bound, at_least=at_least).passed == passed
    assert Figure("x", value).passed


def test_processor_time_and_memory_of_children_are_seen() -> None:
    with subprocess.Popen(["sh", "-c", "timeout 20 sh -c 'while :; do :; done' & wait"]) as process:
        try:
            deadline = time.monotonic() + 10
            while cpu_s(process.pid) < 0.1 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert cpu_s(process.pid) >= 0.1
            assert len(tree(process.pid)) >= 2
            now, peak = memory_mb(process.pid)
            assert 0 < now <= peak
        finally:
            for member in reversed(tree(process.pid)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()


def test_only_connections_of_the_process_to_that_port_count() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert connections_to(os.getpid(), port) == 0
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
            assert connections_to(os.getpid(), port) == 2
