"""From the fork to the drain: the second port in Consul, and what becomes of it when something ends."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from services.users.proto.users_pb2 import GetUserRequest
from tests.contract.grpc.rig import NEVER, Users, refused, users
from tests.contract.grpc.test_server import LONG_S, reflected
from tests.support.eventually import eventually, time_scale
from tests.support.instances import instance
from tests.support.servers import ConsulServer, consul, free_port
from tests.support.signer import Signer, signer


@pytest.fixture(scope="module")
def agent() -> Iterator[ConsulServer]:
    with consul() as server:
        yield server


@pytest.fixture(scope="module")
def keys() -> Iterator[Signer]:
    with signer() as made:
        yield made


def passing(agent: ConsulServer) -> dict[str, int]:
    """The passing instances of users-grpc, by id, and their ports."""
    entries = agent.call("GET", "/v1/health/service/users-grpc?passing")
    assert isinstance(entries, list)
    return {entry["Service"]["ID"]: entry["Service"]["Port"] for entry in entries}


def ask(one: Users, port: int) -> grpc.StatusCode:
    one.port = port
    with one.stub() as stub:
        call = GetUserRequest(id="0" * 32)
        return refused(lambda: stub.GetUser(call, metadata=one.service(), timeout=LONG_S)).code()


def test_second_port_is_kept_in_consul_by_a_check_of_grpc_until_the_drain(
    agent: ConsulServer, keys: Signer, tmp_path: Path
) -> None:
    # A free port of its own choice.
    env = {"CONSUL_HTTP_ADDR": agent.address, "GRPC_PORT": "0", "GRPC_REFLECTION": "true"}
    with users(tmp_path, keys, **env) as one:
        id_ = f"users-127.0.0.1-{one.http.port}-grpc"
        port = eventually(lambda: passing(agent)[id_], 15)
        assert ask(one, port) is grpc.StatusCode.NOT_FOUND
        assert reflected(one), "a stream of requests, which the kit leaves alone"
        checks = agent.call("GET", "/v1/agent/checks")
        assert isinstance(checks, dict)
        assert checks[f"service:{id_}"]["Type"] == "grpc"
        # Its own first look: until then the check stands at what was registered.
        eventually(lambda: "success" in agent.call("GET", "/v1/agent/checks")[f"service:{id_}"]["Output"], 10)  # type: ignore[index]
        meta = agent.call("GET", f"/v1/agent/service/{id_}")
        assert isinstance(meta, dict)
        assert "edge-path" not in meta["Meta"]

        (worker,) = psutil.Process(one.http.process.pid).children()
        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: ask(one, port) is grpc.StatusCode.NOT_FOUND, 20)
        assert passing(agent) == {id_: port}, "a worker takes the port of the one before it"
        # It forks again whenever a worker dies: gRPC's threads would not survive that.
        assert psutil.Process(one.http.process.pid).num_threads() == 1

        agent.call("PUT", f"/v1/agent/service/deregister/{id_}")
        eventually(lambda: passing(agent) == {id_: port}, 15)

        began = time.monotonic()
        one.http.signal(signal.SIGTERM)
        eventually(lambda: not passing(agent), 5)
        assert one.http.exit_code(20) == 0
        assert time.monotonic() - began < 10 * time_scale()


def test_route_at_the_edge_is_asked_for_by_a_setting(
    agent: ConsulServer, keys: Signer, tmp_path: Path
) -> None:
    with users(tmp_path, keys, CONSUL_HTTP_ADDR=agent.address, GRPC_EDGE="true") as one:
        id_ = f"users-127.0.0.1-{one.http.port}-grpc"
        eventually(lambda: passing(agent)[id_] == one.port, 15)
        found = agent.call("GET", f"/v1/agent/service/{id_}")
        assert isinstance(found, dict)
        meta = found["Meta"]
        assert meta["edge-path"] == "/breakwater.users.v1.Users"
        assert (meta["edge-protocol"], meta["edge-auth"]) == ("h2c", "jwt")
        one.http.kill()


@pytest.mark.parametrize("wrong", ["port", "worker"])
def test_instance_that_cannot_speak_grpc_says_why_and_ends(tmp_path: Path, wrong: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = {"GRPC_PORT": str(port)} if wrong == "port" else {"WORKER_CLASS": "gevent"}
        with instance(
            "users", tmp_path, {"CONSUL_HTTP_ADDR": NEVER, **env}, port=free_port(), wait=False
        ) as one:
            assert one.exit_code(20) == 1
            said = one.process.log.read_text()
    assert (
        f"127.0.0.1:{port}: Address already in use" if wrong == "port" else "WORKER_CLASS=gthread"
    ) in said
    assert "Traceback" not in said
