"""An instance that is killed under a load of calls by gRPC: three of users, found in a real Consul by a real client."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery import ConsulApi, View
from services.kit.grpc.client import GrpcClient
from services.kit.telemetry.metrics import Metrics
from services.users.proto.users_pb2 import BatchGetUsersRequest, GetUserRequest
from services.users.proto.users_pb2_grpc import UsersStub
from tests.contract.grpc.rig import Users, users
from tests.support.eventually import eventually, time_scale
from tests.support.servers import consul
from tests.support.signer import signer

CALLERS = 8
# Each of them so often a second, at most.
PACE_S = 0.02
BEFORE_S, AFTER_S = 1.0, 3.0


class Calls:
    """Callers that ask without end, and what came of it."""

    def __init__(self, stub: UsersStub, ids: list[str]) -> None:
        self.errors: list[BaseException] = []
        self.took_s: list[tuple[float, float]] = []
        self._stub = stub
        self._ids = ids
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(CALLERS)]

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(PACE_S):
            number += 1
            began = time.monotonic()
            try:
                if number % 4:
                    assert self._stub.GetUser(GetUserRequest(id=self._ids[0])).id == self._ids[0]
                else:
                    found = self._stub.BatchGetUsers(BatchGetUsersRequest(ids=self._ids))
                    assert [user.id for user in found.users] == self._ids
            except Exception as error:
                self.errors.append(error)
            self.took_s.append((began, time.monotonic() - began))

    def __enter__(self) -> Calls:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30 * time_scale())


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[tuple[list[Users], GrpcClient, Metrics]]:
    """Three instances on one database, and a client that follows them."""
    with contextlib.ExitStack() as stack:
        agent, keys = stack.enter_context(consul()), stack.enter_context(signer())
        env = {"CONSUL_HTTP_ADDR": agent.address}
        members = [stack.enter_context(users(tmp_path, keys, **env)) for _ in range(3)]
        members[0].add(3)
        view = View(ConsulApi(agent.address), services=["users-grpc"])
        view.start()
        stack.callback(view.stop)
        eventually(lambda: len(view.snapshot().instances("users-grpc")) == 3, 20)
        metrics, token = Metrics("caller"), keys.token("service:posts", "service")
        yield members, GrpcClient(lambda: view, metrics, lambda _: token), metrics
        for member in members:
            member.http.kill()


def attempts(metrics: Metrics) -> Counter[str]:
    """Attempts by outcome."""
    found: Counter[str] = Counter()
    for line in metrics.render().decode().splitlines():
        if line.startswith("service_upstream_attempts_total{"):
            found[line.split('outcome="')[1].split('"')[0]] += int(float(line.rsplit(" ", 1)[1]))
    return found


def test_killed_instance_costs_no_call(fleet: tuple[list[Users], GrpcClient, Metrics]) -> None:
    members, client, metrics = fleet
    victim = members[0]
    with Calls(client.stub("users", UsersStub), victim.ids) as calls:
        time.sleep(BEFORE_S * time_scale())
        before = len(calls.took_s)
        killed_s = time.monotonic()
        victim.http.kill()
        time.sleep(AFTER_S)
        assert len(client.lines.places()) == 2
        victim.http.start()
        # Ejected for two seconds, or until Consul has seen it come back.
        eventually(lambda: len(client.lines.places()) == 3, 20)
        time.sleep(0.5)
    outcomes = attempts(metrics)
    slowest_s = max(took for began, took in calls.took_s if began > killed_s - 1)
    print(
        f"{len(calls.took_s)} calls, {before} before the kill; attempts {dict(outcomes)}; slowest {slowest_s:.3f} s"
    )
    assert calls.errors == []
    assert outcomes["ResponseLost"] + outcomes["ConnectFailed"] > 0, "the killed instance was never missed"
    assert slowest_s < 2.0 * time_scale()
