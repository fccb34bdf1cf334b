"""(f) The gateway against the tutorial's, and against the direct lane.

One process each, behind the same HAProxy that only balances, on one core; what feeds them (wrk, two instances of each service,
Consul, Redis) has the other. The tutorial's is one sync worker of gunicorn, as ours is one gevent worker: a stack of either
has one for each core. Because a sync worker leaves its core idle while it waits, three of them are measured as well.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import apps
from bench.edge import Edge, controlled_edge
from bench.forwarding import compare
from bench.programs import FEEDING_CORE, MEASURED_CORE, pinned, program, wait_until
from bench.results import Figure, Result
from bench.wrk import Sample, Subject, interleave, median
from tests.support import servers

INSTANCES = 2
# Limits stay at work, but refuse no request: a refusal is cheaper than an answer, and would flatter the gateway.
GATEWAY_ENV = {"GATEWAY_DOMAIN": "business", "GATEWAY_UPSTREAM_MIN": "128"}
# Of gunicorn, for one core: (2 x cores) + 1. Ref: its documentation, "How Many Workers?"
MORE_WORKERS = 3
# As services that mostly wait are run; eight threads could not wait for what the gateway asks of them at once.
SERVICE_ENV = {"WORKER_CLASS": "gevent", "LOG_LEVEL": "warning"}

FRONT = """global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen front
    bind 127.0.0.1:{port}
    http-reuse always
    server one 127.0.0.1:{behind}
"""


@dataclass(frozen=True)
class Running:
    """Processes of one side, and the port that they are reached at."""

    port: int
    pids: tuple[int, ...]

    def subject(self, name: str, path: str, *, rest_s: float = 0.0) -> Subject:
        first, *others = self.pids
        url = f"http://127.0.0.1:{self.port}{path}"
        return Subject(name, url, first, others=tuple(others), rest_s=rest_s)


def _id(kind: str) -> str:
    return kind + "1" * 31


@contextlib.contextmanager
def services(folder: Path, env: Mapping[str, str]) -> Iterator[dict[str, list[int]]]:
    """Two instances each of users and products, and of products as a service whose lane is the gateway's; yields their ports."""
    ports: dict[str, list[int]] = {"users": [], "products": [], "smart": []}
    with contextlib.ExitStack() as stack:
        for name, own in ports.items():
            for port in servers.free_ports(INSTANCES):
                command = pinned(FEEDING_CORE, [sys.executable, "-m", "bench.apps", name])
                given = {**env, **SERVICE_ENV, "PORT": str(port)}
                stack.enter_context(program(command, folder / f"{name}-{port}.log", port=port, env=given))
                own.append(port)
        yield ports


@contextlib.contextmanager
def front(folder: Path, name: str, behind: int) -> Iterator[tuple[int, int]]:
    """A HAProxy that only balances; yields (port, pid)."""
    port = servers.free_port()
    config = folder / f"{name}.cfg"
    config.write_text(FRONT.format(port=port, behind=behind))
    command = pinned(MEASURED_CORE, ["haproxy", "-W", "-db", "-f", str(config)])
    with program(command, folder / f"{name}.log", port=port) as process:
        yield port, process.pid


@contextlib.contextmanager
def tutorial_gateway(
    folder: Path, behind: Mapping[str, Sequence[int]], workers: int = 1
) -> Iterator[Running]:
    """The tutorial's gateway under gunicorn's sync workers. It knows one address of each service: one at a time is all it asks."""
    port = servers.free_port()
    env = {
        "USER_SERVICE_URL": f"http://localhost:{behind['users'][0]}/user/",
        "PRODUCT_SERVICE_URL": f"http://localhost:{behind['products'][0]}/product/",
    }
    command = [sys.executable, "-m", "gunicorn", "bench.apps:app_gateway", "--no-control-socket"]
    command += ["-k", "sync", "-w", str(workers), "-b", f"127.0.0.1:{port}"]
    log = folder / f"tutorial-{workers}.log"
    with (
        program(pinned(MEASURED_CORE, command), log, port=port, env=env) as process,
        front(folder, f"tutorial-{workers}-front", port) as (public, pid),
    ):
        yield Running(public, (process.pid, pid))


@contextlib.contextmanager
def gateway(folder: Path, env: Mapping[str, str]) -> Iterator[Running]:
    """One instance of the business group, registered, behind a HAProxy that only balances."""
    port = servers.free_port()
    command = pinned(MEASURED_CORE, [sys.executable, "-m", "gateway"])
    given = {**env, **GATEWAY_ENV, "PORT": str(port)}
    with (
        program(command, folder / "gateway.log", port=port, env=given) as process,
        front(folder, "gateway-front", port) as (public, pid),
    ):
        yield Running(public, (process.pid, pid))


def _read(url: str) -> Any:
    """The JSON that is answered with 200. Raises OSError."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own, on loopback
        return json.loads(answer.read())


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        return _read(url) is not None
    return False


def same_data(theirs: Any, ours: Any) -> bool:
    """Whether two composed answers tell of the same user and product: the tutorial's passes the services' envelopes on."""
    return all(theirs[part]["data"] == ours[part] for part in ("user", "product"))


@contextlib.contextmanager
def _subjects() -> Iterator[list[Subject]]:
    """Everything that is compared, running and warm."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        folder.chmod(0o755)
        consul = stack.enter_context(servers.consul(folder))
        redis = stack.enter_context(servers.redis())
        env = {"CONSUL_HTTP_ADDR": consul.address, "REDIS_CACHE_URL": redis.url, "DATA_DIR": str(folder)}
        behind = stack.enter_context(services(folder, env))
        theirs = stack.enter_context(tutorial_gateway(folder, behind))
        more = stack.enter_context(tutorial_gateway(folder, behind, MORE_WORKERS))
        ours = stack.enter_context(gateway(folder, env))
        edge, _ = stack.enter_context(controlled_edge(folder, consul.address))
        subjects = list(_compared(theirs, more, ours, edge))
        for subject in subjects:
            wait_until(f"{subject.name} at {subject.url}", lambda url=subject.url: _answers(url), 30, 0.1)  # type: ignore[misc]
        by_name = {subject.name: subject.url for subject in subjects}
        if not same_data(_read(by_name["tutorial, 0 ms"]), _read(by_name["composed, 0 ms"])):
            raise RuntimeError("the two gateways do not answer the same")
        yield subjects


def _compared(theirs: Running, more: Running, ours: Running, edge: Edge) -> Iterator[Subject]:
    public = Running(edge.port, (ours.pids[0], edge.pid))
    for kind, work in ((apps.AT_ONCE, "0 ms"), (apps.WAITING, "20 ms")):
        path = f"/api/{_id(kind)}/{_id(kind)}"
        rest_s = 3.0 if kind == apps.WAITING else 0.3
        yield theirs.subject(f"tutorial, {work}", path, rest_s=rest_s)
        yield more.subject(f"tutorial, {MORE_WORKERS} workers, {work}", path, rest_s=rest_s / 2)
        yield ours.subject(f"composed, {work}", path)
        yield public.subject(f"direct lane, {work}", f"/api/products/{_id(kind)}")
        yield public.subject(f"forwarded, {work}", f"/api/smart/{_id(kind)}")
    kept = f"/api/{_id(apps.KEEPABLE)}/{_id(apps.KEEPABLE)}"
    yield ours.subject("from the gateway's cache", kept)
    yield public.subject("from the edge's cache", kept)


BOUNDS: list[tuple[str, str, float | None]] = [
    ("composed, 0 ms", "tutorial, 0 ms", 3.5),
    ("composed, 20 ms", "tutorial, 20 ms", 20.0),
    ("composed, 0 ms", f"tutorial, {MORE_WORKERS} workers, 0 ms", None),
    ("composed, 20 ms", f"tutorial, {MORE_WORKERS} workers, 20 ms", None),
    ("from the gateway's cache", "tutorial, 0 ms", 10.0),
    ("from the edge's cache", "tutorial, 0 ms", 150.0),
    ("forwarded, 0 ms", "direct lane, 0 ms", 0.4),
    ("forwarded, 20 ms", "direct lane, 20 ms", 0.4),
]


def against_tutorial(rounds: int, seconds: float) -> Result:
    """Part (f)."""
    with _subjects() as subjects:
        samples = interleave(subjects, rounds, seconds)
    result = compare("f", "the gateway against the tutorial's and the direct lane", samples, BOUNDS)
    return with_tails(result, samples)


def with_tails(result: Result, samples: Mapping[str, Sequence[Sample]]) -> Result:
    """The result, and how the gateway's p99 compares with the tutorial's under the same connections."""
    tails = tuple(
        Figure(
            f"p99, composed / tutorial, {work}",
            median(samples[f"composed, {work}"]).p99_ms / median(samples[f"tutorial, {work}"]).p99_ms,
            bound=1.0,
            at_least=False,
        )
        for work in ("0 ms", "20 ms")
    )
    return replace(result, figures=(*result.figures, *tails))
