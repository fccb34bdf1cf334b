"""From binding to leaving: real gunicorn, real Consul, real signals."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.contract.kit.running import Running, running
from tests.support.eventually import eventually, time_scale
from tests.support.matrix import one_always
from tests.support.servers import ConsulServer, accepts, consul, free_port


@pytest.fixture(scope="module")
def agent() -> Iterator[ConsulServer]:
    with consul() as server:
        yield server


def registered(agent: ConsulServer) -> dict[str, Any]:
    answer = agent.call("GET", "/v1/agent/services")
    assert isinstance(answer, dict)
    return answer


def passing(agent: ConsulServer) -> list[Any]:
    answer = agent.call("GET", "/v1/health/service/hello?passing")
    assert isinstance(answer, list)
    return answer


def test_instance_registers_itself_once_it_answers(agent: ConsulServer, tmp_path: Path) -> None:
    with running(tmp_path, CONSUL_HTTP_ADDR=agent.address) as instance:
        entry = eventually(lambda: registered(agent)[f"hello-127.0.0.1-{instance.port}"], 10)
        assert entry["Port"] == instance.port
        assert entry["Meta"]["edge-path"] == "/api/hello"
        assert entry["Meta"]["edge-auth"] == "public"
        eventually(lambda: passing(agent), 10)


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_sigterm_leaves_consul_first_drains_and_exits_0(
    agent: ConsulServer, tmp_path: Path, kind: str
) -> None:
    with running(
        tmp_path, CONSUL_HTTP_ADDR=agent.address, DRAIN_DELAY_S="1.0", WORKER_CLASS=kind
    ) as instance:
        name = f"hello-127.0.0.1-{instance.port}"
        eventually(lambda: name in registered(agent), 10)
        instance.signal(signal.SIGTERM)
        eventually(lambda: name not in registered(agent), 2)
        # Out of Consul, and new requests are still served while the edge learns of it.
        eventually(lambda: instance.get("/health/ready").status_code == 503, 0.8)
        assert instance.get("/api/hello").status_code == 200
        assert instance.exit_code(10) == 0
        assert not accepts(instance.port)
        assert name not in registered(agent)
        assert instance.events().count("instance ready") == 1


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
@pytest.mark.parametrize("number", one_always(signal.SIGTERM, signal.SIGINT))
def test_open_requests_end_whole_though_told_to_stop_twice(
    tmp_path: Path, kind: str, number: signal.Signals
) -> None:
    with running(tmp_path, WORKER_CLASS=kind, DRAIN_DELAY_S="0.2", DRAIN_TIMEOUT_S="15") as instance:
        answers: dict[str, requests.Response] = {}

        def ask(path: str) -> None:
            answers[path] = instance.get(path)

        # Longer than the 2 s that gunicorn leaves its workers after a second SIGINT.
        paths = ["/api/hello/slow?s=4", "/api/hello/stream"]
        threads = [threading.Thread(target=ask, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        instance.signal(number)
        time.sleep(0.1)
        instance.signal(number)
        time.sleep(0.4)
        instance.signal(number)
        for thread in threads:
            thread.join(15)
        assert answers[paths[0]].json() == {"slept": True}
        assert answers[paths[1]].text == "0\n1\n2\n3\n4\n"
        assert instance.exit_code(10) == 0


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_idle_connection_does_not_hold_up_the_end(tmp_path: Path, kind: str) -> None:
    with running(tmp_path, WORKER_CLASS=kind, DRAIN_DELAY_S="0", DRAIN_TIMEOUT_S="30") as instance:
        kept = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=10)
        kept.request("GET", "/api/hello")
        kept.getresponse().read()
        instance.signal(signal.SIGTERM)
        time.sleep(0.3)
        # One that was on its way already is answered, and told that it was the last.
        kept.request("GET", "/api/hello")
        answer = kept.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (200, "close")
        kept.close()
        assert instance.exit_code(8) == 0


def test_kept_connection_without_a_request_is_closed_in_the_end(tmp_path: Path) -> None:
    for kind in ("gthread", "gevent"):
        with running(tmp_path, WORKER_CLASS=kind, DRAIN_DELAY_S="0", DRAIN_TIMEOUT_S="30") as instance:
            kept = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=10)
            kept.request("GET", "/api/hello")
            kept.getresponse().read()
            instance.signal(signal.SIGTERM)
            assert instance.exit_code(8) == 0
            assert "Socket error processing request." not in instance.events()
            kept.close()


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


def test_stopping_instance_refuses_connections_rather_than_leaving_them_unanswered(tmp_path: Path) -> None:
    with running(tmp_path, DRAIN_DELAY_S="0.1") as instance:
        busy = threading.Thread(target=instance.get, args=("/api/hello/slow?s=3",))
        busy.start()
        time.sleep(0.2)
        instance.signal(signal.SIGTERM)
        eventually(lambda: not accepts(instance.port), 1.5)
        assert instance.process.running
        busy.join(10)
        assert instance.exit_code(10) == 0


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_killed_worker_is_replaced_and_the_instance_stays_registered(
    agent: ConsulServer, tmp_path: Path, kind: str
) -> None:
    with running(tmp_path, CONSUL_HTTP_ADDR=agent.address, WORKER_CLASS=kind) as instance:
        name = f"hello-127.0.0.1-{instance.port}"
        eventually(lambda: name in registered(agent), 10)
        before = instance.get("/api/hello").json()["pid"]
        with pytest.raises(requests.ConnectionError):
            instance.get("/api/hello/die")
        after = eventually(lambda: instance.get("/api/hello").json()["pid"], 10)
        assert after != before
        assert name in registered(agent)
        # It forks again whenever a worker dies: a thread would leave its locks behind in the new one.
        tasks = Path(f"/proc/{instance.process.pid}/task")
        eventually(lambda: len(list(tasks.iterdir())) == 1, 2)
        assert instance.process.pid not in (before, after)


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
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


def test_stop_signal_to_the_whole_group_still_drains(tmp_path: Path) -> None:
    with running(tmp_path, DRAIN_DELAY_S="1.0") as instance:
        worker = instance.get("/api/hello").json()["pid"]
        os.killpg(instance.process.pid, signal.SIGINT)
        eventually(lambda: instance.get("/health/ready").status_code == 503, 0.8)
        assert instance.get("/api/hello").json()["pid"] == worker
        assert instance.exit_code(10) == 0


def test_port_in_use_is_a_clear_error_and_a_code(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running(tmp_path, wait=False, port=port) as instance:
            assert instance.exit_code(20) == 1
            text = instance.process.log.read_text()
            assert f"127.0.0.1:{port}: Address already in use" in text
            assert "Traceback" not in text


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"HOST": "localhost"}, "cannot be registered: address='localhost'"),
        (
            {"ADVERTISE_ADDRESS": "web.example"},
            "ADVERTISE_ADDRESS: Value error, 'web.example' does not appear to be",
        ),
        ({"ADVERTISE_ADDRESS": "198.51.100.0/24"}, "no address of this machine is in 198.51.100.0/24"),
    ],
)
def test_address_that_consul_cannot_take_is_a_clear_error_and_a_code(
    tmp_path: Path, environment: dict[str, str], told: str
) -> None:
    with running(tmp_path, wait=False, **environment) as instance:
        assert instance.exit_code(20) == 1
        text = instance.process.log.read_text()
        assert told in text
        assert "Traceback" not in text


def test_bad_environment_is_a_clear_error_and_a_code(tmp_path: Path) -> None:
    with running(tmp_path, wait=False, DRAIN_DELAY_S="soon") as instance:
        assert instance.exit_code(20) == 1
        text = instance.process.log.read_text()
        assert "DRAIN_DELAY_S: Input should be a valid number" in text
        assert "Traceback" not in text


def test_without_consul_it_serves_and_registers_when_consul_comes(tmp_path: Path) -> None:
    with consul() as agent:
        agent.kill()
        with running(tmp_path, CONSUL_HTTP_ADDR=agent.address) as instance:
            assert instance.get("/api/hello").status_code == 200
            time.sleep(0.5)
            agent.start()
            eventually(lambda: f"hello-127.0.0.1-{instance.port}" in registered(agent), 10)


def test_hanging_consul_delays_leaving_by_seconds_only(tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(50)
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with running(tmp_path, CONSUL_HTTP_ADDR=address, DRAIN_DELAY_S="0") as instance:
            eventually(lambda: "instance ready" in instance.events(), 5)
            started = time.monotonic()
            instance.signal(signal.SIGTERM)
            assert instance.exit_code(15) == 0
            assert time.monotonic() - started < 6 * time_scale()


def test_log_lines_are_json_and_carry_the_ids(tmp_path: Path) -> None:
    with running(tmp_path) as instance:
        instance.get("/api/hello", headers={"X-Request-ID": "c" * 20})
        lines = eventually(lambda: [each for each in instance.lines() if each["event"] == "request"], 5)
        (line,) = [each for each in lines if each["request_id"] == "c" * 20]
        assert line["instance_id"] == f"hello-127.0.0.1-{instance.port}"
        assert line["route"] == "/api/hello"
        assert all(each["route"] != "/health/ready" for each in lines)


def test_free_port_and_server_header(tmp_path: Path) -> None:
    with running(tmp_path, port=free_port()) as instance:
        answer = instance.get("/api/hello")
        assert not any(character.isdigit() for character in answer.headers["Server"])


def passes_on(instance: Running) -> dict[str, Any]:
    answer = instance.get("/api/hello/peer", headers={"X-Request-ID": "d" * 20, "X-Deadline-Ms": "5000"})
    answer.raise_for_status()
    values: dict[str, Any] = answer.json()
    return values


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_call_to_a_peer_passes_on_id_trace_and_deadline(
    agent: ConsulServer, tmp_path: Path, kind: str
) -> None:
    with running(tmp_path, CONSUL_HTTP_ADDR=agent.address, WORKER_CLASS=kind) as instance:
        eventually(lambda: passing(agent), 10)
        values = eventually(lambda: passes_on(instance), 10)
        assert values["mine"] == "d" * 20
        assert values["peer"]["x-request-id"] == "d" * 20
        assert values["peer"]["traceparent"][:36] == values["trace"][:36]
        assert 0 < int(values["peer"]["x-deadline-ms"]) < 5000


def test_calls_to_peers_are_counted_by_outcome(agent: ConsulServer, tmp_path: Path) -> None:
    with running(tmp_path, CONSUL_HTTP_ADDR=agent.address) as instance:
        eventually(lambda: passes_on(instance), 10)
        text = instance.get("/metrics").text
        assert 'service_upstream_calls_total{outcome="2xx",upstream="hello"}' in text
        assert 'service_upstream_attempts_total{outcome="2xx",upstream="hello"}' in text
        assert 'service_upstream_call_duration_seconds_count{upstream="hello"}' in text
