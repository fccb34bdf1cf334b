"""Instances that are cut off or hang: what was asked of them is answered by another, and nothing is dropped on the way."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from haproxy.controller.model import EdgeState
from haproxy.controller.reaper import Reaper, gone_down
from haproxy.controller.runtime import Runtime
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import eventually, time_scale
from tests.support.load import Load, Plan
from tests.support.recorder import recorder_process
from tests.support.servers import Process, free_ports

# A gateway's backend has `option abortonclose`, the others have not.
SERVICES = ("users", "gateway-business")
PATH = "/api/lost"
# How an instance is lost: its connections hang in both cases; of one that is cut off, new ones are not even made.
LOST = {"cut off": signal.SIGUSR1, "hung": signal.SIGSTOP}


@dataclass
class Pair:
    """Two instances, each a process of its own, behind an edge."""

    service: str
    edge: Edge
    processes: list[Process]

    def load(self, *, headers: Mapping[str, str] = {}, **plan: object) -> Load:  # noqa: B006  never written to
        # Many connections: whenever an instance is given up, some requests are under way and some only just connecting.
        plan = {"paths": (PATH,), "rate_per_s": 200, "connections": 64, "headers": headers} | plan
        return Load(Plan(self.edge.port, **plan))  # type: ignore[arg-type]

    def status(self, number: int) -> str:
        return self.edge.stat(f"svc_{self.service}", f"{self.service}-{number}")["status"]

    def lose(self, how: str, *numbers: int) -> None:
        """Until the edge has noticed, and a while longer."""
        for number in numbers:
            self.processes[number - 1].signal(LOST[how])
        eventually(lambda: all(self.status(number).startswith("DOWN") for number in numbers), 5)
        time.sleep(1.5)


@contextlib.contextmanager
def pair(folder: Path, service: str, *, reaping: bool = True) -> Iterator[Pair]:
    ports = free_ports(2)
    with contextlib.ExitStack() as stack:
        processes = []
        for port in ports:
            processes.append(recorder_process(folder, service, port))
            stack.callback(processes[-1].kill)
        running = stack.enter_context(edge(EdgeState((backend(service, *ports, paths=(PATH,)),))))
        if reaping:
            reaper = Reaper(running.settings.events_socket, Runtime(running.settings.runtime_socket))
            reaper.start()
            stack.callback(reaper.stop)
        made = Pair(service, running, processes)
        eventually(lambda: running.get(PATH).status == 200, 5)
        eventually(lambda: made.status(1).startswith("UP") and made.status(2).startswith("UP"), 5)
        yield made


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("how", LOST)
def test_one_lost_of_two_costs_no_get(tmp_path: Path, service: str, how: str) -> None:
    with pair(tmp_path, service) as made:
        with made.load() as load:
            time.sleep(0.5)
            made.lose(how, 1)
        report = load.report()
        assert not report.failures(), report.summary()
        # Two checks that run out of time, the wait for those that connect, and one more attempt.
        assert report.latency_s(1.0) < 5.0 * time_scale(), report.summary()


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("how", LOST)
def test_while_both_are_lost_everybody_gets_an_answer(tmp_path: Path, service: str, how: str) -> None:
    with pair(tmp_path, service) as made:
        with made.load(headers={"Connection": "close"}, ok=frozenset({200, 503})) as load:
            time.sleep(0.5)
            made.lose(how, 1, 2)
        report = load.report()
        assert {answer.status for answer in report.good()} == {200, 503}
        # Where a connection that had served before ends without an answer HAProxy passes that on, as HTTP tells clients to
        # expect: of one at a time, each server has one or two of these.
        assert {answer.error for answer in report.failures()} <= {"closed"}, report.summary()
        assert len(report.failures()) <= 4, report.summary()
        assert report.latency_s(1.0) < 5.0 * time_scale(), report.summary()


def test_without_the_reaper_requests_hang_with_their_instance(tmp_path: Path) -> None:
    with pair(tmp_path, "users", reaping=False) as made:
        with made.load(timeout_s=4.0) as load:
            time.sleep(0.5)
            made.lose("hung", 1)
            time.sleep(2)
        assert {answer.error for answer in load.report().failures()} == {"timeout"}


def test_lines_that_are_wrong_end_no_request(tmp_path: Path) -> None:
    lines = (
        b"",
        b"\xff" * 2000,
        b"Server svc_none/x is DOWN",
        b"Server svc_users/; show info is DOWN",
        b"Server svc_users/users-1 is DOWN, reason: it is up again",
    )
    with pair(tmp_path, "users") as made, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(made.edge.settings.events_socket))
        # What is ended here is not tried again, and there is always something under way.
        with made.load(method="POST", paths=(f"{PATH}/slow",)) as load:
            time.sleep(0.5)
            for line in lines:
                sender.send(line)
            time.sleep(1.5)
        assert not load.report().failures(), load.report().summary()
        with made.load() as load:
            made.lose("hung", 1)
        assert not load.report().failures(), load.report().summary()


@pytest.mark.parametrize(
    ("line", "server"),
    [
        (
            b"Server svc_users/users-1 is DOWN, reason: Layer4 timeout, check duration: 9ms.",
            ("svc_users", "users-1"),
        ),
        (b"Backup Server svc_users/b is DOWN, reason: Layer7 wrong status", ("svc_users", "b")),
        (b"Server svc_users/users-1 is UP, reason: Layer7 check passed", None),
        (b"Server svc_users/users-1 is going DOWN for maintenance.", None),
        (b"backend svc_users has no server available!", None),
    ],
)
def test_lines_of_the_log_that_tell_of_a_server_that_goes_down(
    line: bytes, server: tuple[str, str] | None
) -> None:
    assert gone_down(line) == server
