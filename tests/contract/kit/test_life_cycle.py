"""From binding to leaving: real gunicorn, real Consul, real signals."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.contract.kit.running import running
from tests.support.eventually import eventually, time_scale
from tests.support.faulty import FaultyProxy
from tests.support.instances import RunningInstance
from tests.support.matrix import one_always
from tests.support.scripted import upstream
from tests.support.servers import ConsulServer, accepts, consul, free_port


@pytest.fixture(scope="module")
def agent() -> Iterator[ConsulServer]:
    with consul() as server:
        yield server


@pytest.fixture(scope="module", params=one_always("gthread", "gevent"))
def registered(
    request: pytest.FixtureRequest, agent: ConsulServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningInstance]:
    """An instance that Consul says is passing."""
    folder = tmp_path_factory.mktemp("registered")
    with running(folder, CONSUL_HTTP_ADDR=agent.address, WORKER_CLASS=request.param) as instance:
        eventually(lambda: agent.call("GET", "/v1/health/service/hello?passing"), 10)
        yield instance


def entries(agent: ConsulServer) -> dict[str, Any]:
    """The agent's registrations by their ids."""
    answer = agent.call("GET", "/v1/agent/services")
    assert isinstance(answer, dict)
    return answer


def name(instance: RunningInstance) -> str:
    return f"hello-127.0.0.1-{instance.port}"


def test_instance_registers_itself_once_it_answers(agent: ConsulServer, registered: RunningInstance) -> None:
    entry = entries(agent)[name(registered)]
    assert entry["Port"] == registered.port
    assert entry["Meta"]["edge-path"] == "/api/hello"
    assert entry["Meta"]["edge-auth"] == "public"
    assert registered.events().count("instance ready") == 1


def test_log_lines_are_json_and_carry_the_ids(registered: RunningInstance) -> None:
    answer = registered.get("/api/hello", headers={"X-Request-ID": "c" * 20})
    assert not any(character.isdigit() for character in answer.headers["Server"])
    (line,) = eventually(
        lambda: [each for each in registered.lines() if each.get("request_id") == "c" * 20], 5
    )
    assert line["instance_id"] == name(registered)
    assert line["route"] == "/api/hello"
    assert all(each.get("route") != "/health/ready" for each in registered.lines())


def test_call_to_a_peer_passes_on_id_trace_and_deadline_and_is_counted(registered: RunningInstance) -> None:
    def passes_on() -> dict[str, Any]:
        answer = registered.get(
            "/api/hello/peer", headers={"X-Request-ID": "d" * 20, "X-Deadline-Ms": "5000"}
        )
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    values = eventually(passes_on, 10)
    assert values["mine"] == "d" * 20
    assert values["peer"]["x-request-id"] == "d" * 20
    assert values["peer"]["traceparent"][:36] == values["trace"][:36]
    assert 0 < int(values["peer"]["x-deadline-ms"]) < 5000
    text = registered.get("/metrics").text
    assert 'service_upstream_calls_total{outcome="2xx",upstream="hello"}' in text
    assert 'service_upstream_attempts_total{outcome="2xx",upstream="hello"}' in text
    assert 'service_upstream_call_duration_seconds_count{upstream="hello"}' in text


def test_killed_worker_is_replaced_and_the_instance_stays_registered(
    agent: ConsulServer, registered: RunningInstance
) -> None:
    before = registered.get("/api/hello").json()["pid"]
    with pytest.raises(requests.ConnectionError):
        registered.get("/api/hello/die")
    after = eventually(lambda: registered.get("/api/hello").json()["pid"], 10)
    assert after != before
    assert name(registered) in entries(agent)
    # It forks again whenever a worker dies: a thread would leave its locks behind in the new one.
    tasks = Path(f"/proc/{registered.process.pid}/task")
    eventually(lambda: len(list(tasks.iterdir())) == 1, 2)
    assert registered.process.pid not in (before, after)


LEAVING = [
    ("gthread", signal.SIGTERM, os.kill),
    *one_always(
        ("gevent", signal.SIGINT, os.killpg),
        ("gthread", signal.SIGINT, os.killpg),
        ("gevent", signal.SIGTERM, os.kill),
    ),
]


@pytest.mark.parametrize(("kind", "number", "send"), LEAVING)
def test_instance_told_to_stop_three_times_leaves_consul_first_and_then_ends_what_is_open(
    agent: ConsulServer, tmp_path: Path, kind: str, number: signal.Signals, send: Any
) -> None:
    """To the master, as a supervisor does, or to the whole group, as a terminal does."""
    delay_s = time_scale()
    env = {"WORKER_CLASS": kind, "DRAIN_DELAY_S": str(delay_s), "DRAIN_TIMEOUT_S": "15"}
    with (
        running(tmp_path, CONSUL_HTTP_ADDR=agent.address, **env) as instance,
        ThreadPoolExecutor(2) as pool,
    ):
        eventually(lambda: name(instance) in entries(agent), 10)
        worker = instance.get("/api/hello").json()["pid"]
        # Open for longer than the 2 s that gunicorn leaves its workers after a second SIGINT.
        slow = pool.submit(instance.get, f"/api/hello/slow?s={delay_s + 4}")
        stream = pool.submit(instance.get, f"/api/hello/stream?s={delay_s + 4}")
        time.sleep(0.3)
        send(instance.process.pid, number)
        eventually(lambda: name(instance) not in entries(agent), 2)
        # Out of Consul, and new requests are still served while the edge learns of it.
        eventually(lambda: instance.get("/health/ready").status_code == 503, 0.8)
        send(instance.process.pid, number)
        assert instance.get("/api/hello").json()["pid"] == worker
        # Refused rather than left unanswered, while the others go on.
        eventually(lambda: not accepts(instance.port), 2)
        assert instance.process.running
        send(instance.process.pid, number)
        assert slow.result().json() == {"slept": True}
        assert stream.result().text == "0\n1\n2\n3\n4\n"
        assert instance.exit_code(10) == 0
        assert name(instance) not in entries(agent)


@pytest.mark.parametrize("kind", one_always("gevent", "gthread"))
def test_kept_connections_do_not_hold_up_the_end(tmp_path: Path, kind: str) -> None:
    with running(tmp_path, WORKER_CLASS=kind, DRAIN_DELAY_S="0", DRAIN_TIMEOUT_S="30") as instance:
        used, silent = (http.client.HTTPConnection("127.0.0.1", instance.port, timeout=10) for _ in range(2))
        for kept in (used, silent):
            kept.request("GET", "/api/hello")
            kept.getresponse().read()
        instance.signal(signal.SIGTERM)
        eventually(lambda: not accepts(instance.port), 5)
        # One that was on its way already is answered, with `Connection: close`.
        used.request("GET", "/api/hello")
        answer = used.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (200, "close")
        used.close()
        assert instance.exit_code(8) == 0
        assert "Socket error processing request." not in instance.events()
        silent.close()


def test_request_that_does_not_end_is_cut_after_the_drain_timeout(tmp_path: Path) -> None:
    with running(tmp_path, DRAIN_DELAY_S="0", DRAIN_TIMEOUT_S="1") as instance:
        hanging = threading.Thread(
            target=lambda: pytest.raises(requests.RequestException, instance.get, "/api/hello/slow?s=30")
        )
        hanging.start()
        time.sleep(0.3)
        started = time.monotonic()
        instance.signal(signal.SIGTERM)
        assert instance.exit_code(10) == 0
        assert time.monotonic() - started < 5 * time_scale()
        hanging.join(10)


@pytest.mark.parametrize("kind", one_always("gthread", "gevent"))
def test_killed_master_takes_its_worker_with_it_and_the_port_is_free(tmp_path: Path, kind: str) -> None:
    with running(tmp_path, WORKER_CLASS=kind) as instance:
        worker = instance.get("/api/hello").json()["pid"]
        instance.signal(signal.SIGKILL)
        assert instance.exit_code(5) == -signal.SIGKILL
        eventually(lambda: not Path(f"/proc/{worker}").exists() or _zombie(worker), 2)
        with running(tmp_path, port=instance.port) as again:
            assert again.ready()


def _zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.parametrize(
    ("environment", "texts"),
    [
        ({}, ["127.0.0.1:{port}: Address already in use"]),
        ({"HOST": "localhost"}, ["cannot be registered: address='localhost'"]),
        ({"ADVERTISE_ADDRESS": "198.51.100.0/24"}, ["no address of this machine is in 198.51.100.0/24"]),
        (
            {"ADVERTISE_ADDRESS": "web.example", "DRAIN_DELAY_S": "soon"},
            [
                "ADVERTISE_ADDRESS: Value error, 'web.example' does not appear to be",
                "DRAIN_DELAY_S: Input should be a valid number",
            ],
        ),
    ],
    ids=["port", "host", "network", "settings"],
)
def test_instance_that_cannot_start_says_why_and_ends_with_a_code(
    tmp_path: Path, environment: dict[str, str], texts: list[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = free_port() if environment else taken.getsockname()[1]
        with running(tmp_path, wait=False, port=port, **environment) as instance:
            assert instance.exit_code(20) == 1
            said = instance.process.log.read_text()
            assert all(text.format(port=port) in said for text in texts), said
            assert "Traceback" not in said


def test_without_consul_it_serves_and_registers_when_consul_comes(
    agent: ConsulServer, tmp_path: Path
) -> None:
    port = free_port()
    with running(tmp_path, CONSUL_HTTP_ADDR=f"127.0.0.1:{port}") as instance:
        assert instance.get("/api/hello").status_code == 200
        eventually(lambda: "instance ready" in instance.events(), 5)
        with upstream(FaultyProxy(agent.http_port).forward, port=port):
            eventually(lambda: name(instance) in entries(agent), 10)


def test_hanging_consul_delays_leaving_by_seconds_only(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=50) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with running(tmp_path, CONSUL_HTTP_ADDR=address, DRAIN_DELAY_S="0") as instance:
            eventually(lambda: "instance ready" in instance.events(), 5)
            started = time.monotonic()
            instance.signal(signal.SIGTERM)
            assert instance.exit_code(15) == 0
            assert time.monotonic() - started < 6 * time_scale()
