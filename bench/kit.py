"""(c) What the kit costs: a kit service's JSON answer against bare Flask on the same gunicorn settings."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

from bench.apps import PATH
from bench.forwarding import compared
from bench.programs import MEASURED_CORE, pinned, program
from bench.results import Result
from bench.wrk import Subject, interleaved
from tests.support import servers


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
        samples = interleaved(subjects, rounds, seconds)
    return compared(
        "c",
        "a kit service against bare Flask, one core each, same gunicorn settings",
        samples,
        [("kit service", "bare Flask", 0.75)],
    )
