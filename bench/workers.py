"""Which gunicorn worker should an instance run? `python -m bench.workers` measures the candidates; ADR 0007 decides.

Three loads: `json` answers a small object at once, `wait` after asking an upstream that takes 20 ms, `mixed` is `json` while
two other clients have passwords hashed (Argon2id: 64 MiB, C code that lets go of the interpreter). Each candidate is
driven by wrk, directly and through a plain HAProxy, in short interleaved rounds. Shown are the medians: requests/s, p99
in milliseconds, and CPU of the service's processes in µs a request, which suffers least from what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.wrk import Subject, drive
from tests.support.eventually import eventually
from tests.support.servers import Process, accepts, free_ports, haproxy

UPSTREAM_WAIT_S = 0.02
CONNECTIONS = 32
LOADS = ("json", "wait", "mixed")
HASHING = 2
KIT = "services.kit.server.worker.ThreadWorker"


@dataclass(frozen=True)
class Candidate:
    """`instances` gunicorn masters with `workers` processes each; pinned: one core an instance."""

    name: str
    kind: str
    workers: int = 1
    threads: int = 1
    instances: int = 1
    pinned: bool = False


CANDIDATES = [
    Candidate("sync 2w", "sync", workers=2),
    Candidate("gthread 1w x 1t", "gthread"),
    Candidate("gthread 1w x 2t", "gthread", threads=2),
    Candidate("gthread 1w x 4t", "gthread", threads=4),
    Candidate("gthread 1w x 8t", "gthread", threads=8),
    Candidate("gthread 1w x 16t", "gthread", threads=16),
    Candidate("gthread 2w x 4t", "gthread", workers=2, threads=4),
    Candidate("2 x gthread 1w x 8t", "gthread", threads=8, instances=2),
    Candidate("2 x gthread 1w x 8t, pinned", "gthread", threads=8, instances=2, pinned=True),
    Candidate("gevent 1w", "gevent"),
    Candidate("gevent 2w", "gevent", workers=2),
    Candidate("2 x gevent 1w, pinned", "gevent", instances=2, pinned=True),
    Candidate("kit's gthread 1w x 8t", KIT, threads=8),
    Candidate("2 x kit's gthread 1w x 8t", KIT, threads=8, instances=2),
]

UPSTREAM = """
import asyncio, sys
ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}"
async def serve(reader, writer):
    try:
        while await reader.readuntil(b"\\r\\n\\r\\n"):
            await asyncio.sleep(float(sys.argv[2]))
            writer.write(ANSWER)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()
asyncio.run(main())
"""

APPLICATION = """
import os
import urllib3
from argon2 import PasswordHasher
from flask import Flask
app = Flask("bench")
pool = urllib3.HTTPConnectionPool("127.0.0.1", int(os.environ["UPSTREAM_PORT"]), maxsize=64, retries=False, timeout=5)
@app.get("/json")
def at_once():
    return {"hello": "world", "items": [1, 2, 3]}
@app.get("/wait")
def after_upstream():
    return {"upstream": pool.request("GET", "/").status}
@app.get("/mixed")
def beside_hashing():
    return at_once()
@app.get("/hash")
def hashing():
    return {"hash": PasswordHasher().hash("correct horse")}
"""


@contextlib.contextmanager
def serving(candidate: Candidate, folder: Path, upstream_port: int) -> Iterator[tuple[list[int], list[int]]]:
    """The candidate's gunicorns: their ports and master pids."""
    ports = free_ports(candidate.instances)
    environment = {**os.environ, "UPSTREAM_PORT": str(upstream_port), "PYTHONPATH": f"{folder}:{Path.cwd()}"}
    processes = []
    try:
        for core, port in enumerate(ports):
            argv = [sys.executable, "-m", "gunicorn", "application:app", "-b", f"127.0.0.1:{port}"]
            argv += ["-k", candidate.kind, "-w", str(candidate.workers), "--threads", str(candidate.threads)]
            argv += ["--no-control-socket", "--keep-alive", "75", "--log-level", "warning"]
            if candidate.pinned:
                argv = ["taskset", "-c", str(core % (os.cpu_count() or 1)), *argv]
            process = Process(argv, folder / f"gunicorn-{port}.log", env=environment)
            processes.append(process)
            process.start()
        for port in ports:
            eventually(lambda port=port: accepts(port), 10)  # type: ignore[misc]
        yield ports, [process.pid for process in processes]
    finally:
        for process in processes:
            process.stop()


def plain_haproxy(port: int, servers: list[int]) -> str:
    """A forwarding configuration with nothing else in it."""
    lines = "\n".join(f"  server s{n} 127.0.0.1:{server}" for n, server in enumerate(servers))
    return (
        "global\n  maxconn 2000\n"
        "defaults\n  mode http\n  timeout connect 2s\n  timeout client 30s\n  timeout server 30s\n"
        f"listen all\n  bind 127.0.0.1:{port}\n  balance leastconn\n  http-reuse always\n{lines}\n"
    )


def run_wrk(port: int, load: str, seconds: int, masters: list[int]) -> dict[str, float]:
    """One run of wrk, which no core is kept for: the candidates may use them all."""
    subject = Subject(load, f"http://127.0.0.1:{port}/{load}", masters[0], others=tuple(masters[1:]))
    return asdict(drive(["wrk"], subject, seconds, CONNECTIONS))


@contextlib.contextmanager
def hashing(port: int, seconds: int) -> Iterator[None]:
    """Clients that keep the service hashing passwords meanwhile."""
    argv = ["wrk", "-t1", f"-c{HASHING}", f"-d{seconds}s", f"http://127.0.0.1:{port}/hash"]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as clients:
        yield
        clients.wait(seconds + 20)


def measure(candidate: Candidate, folder: Path, upstream: int, seconds: int) -> dict[str, dict[str, float]]:
    """Every load and way of one candidate, once."""
    answers = {}
    with serving(candidate, folder, upstream) as (ports, masters):
        edge = free_ports(1)[0]
        with haproxy(plain_haproxy(edge, ports), wait_port=edge):
            for load in LOADS:
                run_wrk(edge, load, 1, masters)
                ways = {"edge": edge} if candidate.instances > 1 else {"direct": ports[0], "edge": edge}
                for way, port in ways.items():
                    with hashing(port, seconds + 1) if load == "mixed" else contextlib.nullcontext():
                        answers[f"{load} {way}"] = run_wrk(port, load, seconds, masters)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each run")
    parser.add_argument("--only", default="", help="candidates whose name contains this")
    parser.add_argument("--json", type=Path, help="where the raw figures go")
    chosen = parser.parse_args()
    candidates = [candidate for candidate in CANDIDATES if chosen.only in candidate.name]
    figures: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "application.py").write_text(APPLICATION)
        port = free_ports(1)[0]
        argv = [sys.executable, "-c", UPSTREAM, str(port), str(UPSTREAM_WAIT_S)]
        upstream = Process(argv, folder / "upstream.log")
        upstream.start()
        try:
            eventually(lambda: accepts(port), 10)
            for number in range(chosen.rounds):
                print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr, flush=True)
                for candidate in candidates:
                    for key, figure in measure(candidate, folder, port, chosen.seconds).items():
                        figures.setdefault(candidate.name, {}).setdefault(key, []).append(figure)
        finally:
            upstream.stop()
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1))
    report(figures)


def report(figures: dict[str, dict[str, list[dict[str, float]]]]) -> None:
    """A table of medians: rate, p99, CPU a request."""
    keys = [f"{load} {way}" for load in LOADS for way in ("direct", "edge")]
    print(" " * 30 + "".join(f"{key:>27}" for key in keys))
    for name, ways in figures.items():
        cells = []
        for key in keys:
            runs = ways.get(key, [])
            medians = [
                statistics.median(run[each] for run in runs)
                for each in ("requests_per_s", "p99_ms", "cpu_us")
                if runs
            ]
            cells.append("{:.0f}/s {:6.1f} ms {:4.0f} us".format(*medians) if medians else "-")
        print(f"{name:30}" + "".join(f"{cell:>27}" for cell in cells))


if __name__ == "__main__":
    main()
