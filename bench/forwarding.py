"""(a) The generated edge, with all of its protections on, against a hand-written minimum; (b) against other proxies.

(c) What the kit costs: a kit service's JSON answer against bare Flask on the same gunicorn settings.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.apps import PATH
from bench.edge import bearer, generated_edge
from bench.programs import MEASURED_CORE, pinned, program
from bench.results import Figure, Result
from bench.rivals import caddy, minimal_haproxy, nginx_proxy, upstream
from bench.wrk import Sample, Subject, interleave, median
from tests.support import servers

PUBLIC, PRIVATE, CACHED = "/api/public/1", "/api/private/1", "/api/cached/1"


@contextlib.contextmanager
def _subjects(rivals: bool) -> Iterator[list[Subject]]:
    """Everything that is compared, running."""
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        answering = stack.enter_context(upstream(folder))
        minimal, minimal_pid = stack.enter_context(minimal_haproxy(folder, answering))
        edge = stack.enter_context(generated_edge(folder, answering))
        logging, logging_pid = stack.enter_context(minimal_haproxy(folder, answering, edge.log_format()))
        base = f"http://127.0.0.1:{edge.port}"
        subjects = [
            Subject("minimal HAProxy", f"http://127.0.0.1:{minimal}{PUBLIC}", minimal_pid),
            Subject("minimal with the edge's log", f"http://127.0.0.1:{logging}{PUBLIC}", logging_pid),
            Subject("edge, public", base + PUBLIC, edge.pid),
        ]
        if rivals:
            for label, start in (("Caddy", caddy), ("nginx", nginx_proxy)):
                port, pid = stack.enter_context(start(folder, answering))
                subjects.append(Subject(label, f"http://127.0.0.1:{port}{PUBLIC}", pid))
        else:
            token = {"Authorization": bearer(edge.signing_key)}
            subjects.append(Subject("edge, RS256 token", base + PRIVATE, edge.pid, token))
            subjects.append(Subject("edge, from its cache", base + CACHED, edge.pid))
        yield subjects


def compare(
    part: str,
    title: str,
    samples: Mapping[str, Sequence[Sample]],
    bounds: Sequence[tuple[str, str, float | None]],
) -> Result:
    """Ratios of medians, `bounds` being (name, name of the divisor, least ratio)."""
    middle = {name: median(series) for name, series in samples.items()}
    failed = {name: sample.failed for name, sample in middle.items() if sample.failed}
    if failed:
        raise RuntimeError(f"requests failed during the measurement, so that it says nothing: {failed}")
    first = next(iter(middle.values())).requests_per_s
    rows = tuple(
        (
            name,
            f"{sample.requests_per_s:,.0f}",
            f"{sample.requests_per_s / first:.2f}",
            f"{sample.cpu_us:.1f}",
            f"{sample.p50_ms:.2f}",
            f"{sample.p99_ms:.2f}",
        )
        for name, sample in middle.items()
    )
    figures = tuple(
        Figure(
            f"{name} / {divisor}", middle[name].requests_per_s / middle[divisor].requests_per_s, bound=bound
        )
        for name, divisor, bound in bounds
    )
    return Result(
        part,
        title,
        figures,
        {name: [asdict(sample) for sample in series] for name, series in samples.items()},
        ("", "requests/s", "ratio", "CPU µs/request", "p50 ms", "p99 ms"),
        rows,
    )


def against_minimum(rounds: int, seconds: float) -> Result:
    """Part (a)."""
    with _subjects(rivals=False) as subjects:
        samples = interleave(subjects, rounds, seconds)
    return compare(
        "a",
        "the generated edge against a minimal HAProxy, one core each",
        samples,
        [
            ("edge, public", "minimal HAProxy", 0.75),
            ("edge, public", "minimal with the edge's log", None),
            ("edge, RS256 token", "minimal HAProxy", 0.60),
            ("edge, from its cache", "minimal HAProxy", 1.5),
        ],
    )


def against_rivals(rounds: int, seconds: float) -> Result:
    """Part (b)."""
    with _subjects(rivals=True) as subjects:
        samples = interleave(subjects, rounds, seconds)
    return compare(
        "b",
        "the same public route through other proxies, one core each",
        samples,
        [("edge, public", "Caddy", 2.0), ("edge, public", "nginx", 0.7)],
    )


def against_flask(rounds: int, seconds: float) -> Result:
    """Part (c). The kit's own logging, metrics, ids, deadline and body limit are all on, and it is registered in Consul."""
    subjects = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        consul = stack.enter_context(servers.consul(folder))
        for name, kind in (("bare Flask", "bare"), ("kit service", "kit")):
            port = servers.free_port()
            env = {"PORT": str(port), "DATA_DIR": str(folder), "CONSUL_HTTP_ADDR": consul.address}
            command = pinned(MEASURED_CORE, [sys.executable, "-m", "bench.apps", kind])
            process = stack.enter_context(program(command, folder / f"{kind}.log", port=port, env=env))
            subjects.append(Subject(name, f"http://127.0.0.1:{port}{PATH}", process.pid))
        samples = interleave(subjects, rounds, seconds)
    return compare(
        "c",
        "a kit service against bare Flask, one core each, same gunicorn settings",
        samples,
        [("kit service", "bare Flask", 0.75)],
    )
