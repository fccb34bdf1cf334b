"""One account of a real instance of users, asked for by REST and by gRPC: the same token, the same row, one caller."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.programs import FEEDING_CORE, MEASURED_CORE, cpu_s, pinned
from bench.results import Figure, Result, quantile
from discovery import Instance, ServiceClient, StaticView
from services.kit.grpc.client import GrpcClient
from services.kit.telemetry.metrics import Metrics
from services.users.proto.users_pb2 import BatchGetUsersRequest, GetUserRequest
from services.users.proto.users_pb2_grpc import UsersStub
from tests.support.instances import instance
from tests.support.servers import free_port
from tests.support.signer import signer

ACCOUNTS = 50
REST, GRPC, BATCH = "REST, GET", "gRPC, GetUser", f"gRPC, BatchGetUsers of {ACCOUNTS}"


@dataclass
class Samples:
    """Of one way of asking: seconds of each call, processor seconds of caller and instance, a round each."""

    took_s: list[float] = field(default_factory=list)
    caller_s: list[float] = field(default_factory=list)
    instance_s: list[float] = field(default_factory=list)

    def measure(self, call: Callable[[], object], pid: int, seconds: float) -> None:
        """Ask without a break for so long."""
        count, until = 0, time.perf_counter() + seconds
        caller, served = time.process_time(), cpu_s(pid)
        began = time.perf_counter()
        while began < until:
            call()
            ended = time.perf_counter()
            self.took_s.append(ended - began)
            began, count = ended, count + 1
        self.caller_s.append((time.process_time() - caller) / count)
        self.instance_s.append((cpu_s(pid) - served) / count)


@contextlib.contextmanager
def _ways() -> Iterator[tuple[dict[str, Callable[[], object]], int]]:
    """The calls by name, and the process id of the instance."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, signer() as keys:
        port, own = free_port(), free_port()
        env = {"CONSUL_HTTP_ADDR": "127.0.0.1:1", "AUTH_JWKS_URL": keys.url, "GRPC_PORT": str(port)}
        argv = pinned(MEASURED_CORE, [sys.executable, "-m", "services.users"])
        with instance("users", Path(name), env | {"LOG_LEVEL": "warning"}, argv=argv, port=own) as one:
            ids = [uuid.uuid4().hex for _ in range(ACCOUNTS)]
            for id_ in ids:
                body = {"id": id_, "email": f"{id_}@example.com", "firstName": "A", "lastName": "L"}
                token = keys.token("service:auth", "service")
                one.call("POST", "/internal/users/accounts", json=body, token=token).raise_for_status()
            token = keys.token("service:posts", "service")
            places = [
                Instance(service, service, "node-1", "127.0.0.1", at)
                for service, at in (("users", own), ("users-grpc", port))
            ]
            view = StaticView(places)
            rest = ServiceClient(view, token_source=lambda _: token)
            stub = GrpcClient(lambda: view, Metrics("bench"), lambda _: token).stub("users", UsersStub)
            single, batch = GetUserRequest(id=ids[0]), BatchGetUsersRequest(ids=ids)
            yield (
                {
                    REST: lambda: _right(rest.request("GET", "users", f"/api/users/{ids[0]}").json()),
                    GRPC: lambda: stub.GetUser(single),
                    BATCH: lambda: stub.BatchGetUsers(batch),
                },
                one.process.pid,
            )


def _right(answer: dict[str, object]) -> object:
    return answer["data"]


def rest_against_grpc(rounds: int, seconds: float) -> Result:
    """Part g: latency and processor time of one call, of caller and instance."""
    samples = {name: Samples() for name in (REST, GRPC, BATCH)}
    cores = os.sched_getaffinity(0)
    with _ways() as (ways, pid):
        if FEEDING_CORE in cores:
            os.sched_setaffinity(0, {FEEDING_CORE})
        try:
            for call in ways.values():
                Samples().measure(call, pid, 0.3)
            names = list(ways)
            for turn in range(rounds):
                for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
                    samples[name].measure(ways[name], pid, seconds)
        finally:
            os.sched_setaffinity(0, cores)
    rows = tuple(
        (
            name,
            f"{quantile(each.took_s, 0.5) * 1e3:.2f}",
            f"{quantile(each.took_s, 0.99) * 1e3:.2f}",
            f"{statistics.median(each.caller_s) * 1e6:.0f}",
            f"{statistics.median(each.instance_s) * 1e6:.0f}",
        )
        for name, each in samples.items()
    )
    rest, grpc, batch = (samples[name] for name in (REST, GRPC, BATCH))

    def cpu(one: Samples) -> float:
        return statistics.median(one.caller_s) + statistics.median(one.instance_s)

    return Result(
        "g",
        "one account of users, by REST and by gRPC",
        (
            Figure("processor time of both sides, gRPC against REST", cpu(grpc) / cpu(rest)),
            Figure("median latency, gRPC against REST", _median(grpc) / _median(rest)),
            Figure(f"processor time an account, in a batch of {ACCOUNTS}", cpu(batch) / ACCOUNTS / cpu(rest)),
        ),
        raw={name: {"caller_s": s.caller_s, "instance_s": s.instance_s} for name, s in samples.items()},
        columns=("call", "p50 ms", "p99 ms", "caller, µs", "instance, µs"),
        rows=rows,
    )


def _median(samples: Samples) -> float:
    return statistics.median(samples.took_s)
