"""Instances that are cut off or hang: what was asked of them is answered by another, and nothing is dropped on the way."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from discovery.model import Route
from haproxy.controller.config.model import Backend, EdgeState, Server
from haproxy.controller.errors import Unreachable
from haproxy.controller.loop.steady import Health
from haproxy.controller.runtime.reaper import Reaper, gone_down
from haproxy.controller.runtime.socket import Master, Runtime
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import eventually, time_scale
from tests.support.load import Load, Plan
from tests.support.matrix import one_always
from tests.support.recorder import Upstream, recorder_process
from tests.support.servers import Process, free_ports

PATH = "/api/lost"
# How an instance is lost: its connections hang in both cases; of one that is cut off, new ones are not even made.
LOST = {"cut off": signal.SIGUSR1, "hung": signal.SIGSTOP}
# A gateway's backend has `option abortonclose`, the others have not.
CASES = [(service, how) for service in ("users", "gateway-business") for how in LOST]


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

    def worker(self) -> int:
        """Its process id; 0 while there is none to ask."""
        with contextlib.suppress(Unreachable):
            return Runtime(self.edge.settings.runtime_socket).info().pid
        return 0

    def lose(self, how: str, *numbers: int) -> None:
        """Until the edge has noticed, and a while longer."""
        for number in numbers:
            self.processes[number - 1].signal(LOST[how])
        eventually(lambda: all(self.status(number).startswith("DOWN") for number in numbers), 5)
        time.sleep(1.5)


@contextlib.contextmanager
def reaping(running: Edge) -> Iterator[None]:
    reaper = Reaper(Runtime(running.settings.runtime_socket), Health())
    reaper.start()
    try:
        yield
    finally:
        reaper.stop()


@contextlib.contextmanager
def pair(folder: Path, service: str, *, with_reaper: bool = True) -> Iterator[Pair]:
    ports = free_ports(2)
    with contextlib.ExitStack() as stack:
        processes = []
        for port in ports:
            processes.append(recorder_process(folder, service, port))
            stack.callback(processes[-1].kill)
        running = stack.enter_context(edge(EdgeState((backend(service, *ports, paths=(PATH,)),))))
        if with_reaper:
            stack.enter_context(reaping(running))
        made = Pair(service, running, processes)
        eventually(lambda: running.get(PATH).status == 200, 5)
        eventually(lambda: made.status(1).startswith("UP") and made.status(2).startswith("UP"), 5)
        yield made


@pytest.mark.parametrize(("service", "how"), one_always(*CASES))
def test_one_lost_of_two_costs_no_get(tmp_path: Path, service: str, how: str) -> None:
    with pair(tmp_path, service) as made:
        with made.load() as load:
            time.sleep(0.5)
            made.lose(how, 1)
        report = load.report()
        assert not report.failures(), report.summary()
        # Two checks that run out of time, the wait for those that connect, and one more attempt.
        assert report.latency_s(1.0) < 5.0 * time_scale(), report.summary()


@pytest.mark.parametrize(("service", "how"), one_always(*reversed(CASES)))
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


@pytest.mark.long
def test_without_the_reaper_requests_hang_with_their_instance(tmp_path: Path) -> None:
    with pair(tmp_path, "users", with_reaper=False) as made:
        with made.load(timeout_s=4.0) as load:
            time.sleep(0.5)
            made.lose("hung", 1)
            time.sleep(2)
        assert {answer.error for answer in load.report().failures()} == {"timeout"}


def test_instance_that_is_up_again_keeps_its_requests_and_the_end_is_not_held_up(tmp_path: Path) -> None:
    with pair(tmp_path, "users") as made:
        # What is ended here is not tried again, and there is always something under way.
        with made.load(method="POST", paths=(f"{PATH}/slow",), ok=frozenset({200, 503})) as load:
            time.sleep(0.5)
            made.edge.command("set server svc_users/users-1 health down")
            eventually(lambda: "users-1 is DOWN" in made.edge.command("show events downs"), 5)
            made.edge.command("set server svc_users/users-1 health up")
            time.sleep(1.5)
        assert not load.report().failures(), load.report().summary()
        worker, began = made.worker(), time.monotonic()
        made.edge.server.process.signal(signal.SIGUSR1)
        eventually(lambda: not Path(f"/proc/{worker}").exists(), 10, every_s=0.02)
        assert time.monotonic() - began < 2 * time_scale()


@pytest.mark.long
def test_hundreds_that_go_down_at_once_all_lose_their_requests() -> None:
    """All instances of a machine, say: more at once than can be read one by one in time."""
    count = 300
    with Upstream("users", handler=lambda _: time.sleep(15)) as upstream:
        servers = tuple(Server(f"i{number}", "127.0.0.1", upstream.port) for number in range(count))
        state = EdgeState((Backend(Route("users", paths=(PATH,), auth="public"), servers),))
        with edge(state) as running, reaping(running):
            plan = Plan(running.port, (PATH,), method="POST", rate_per_s=None, connections=count)
            eventually(lambda: running.stat("svc_users", f"i{count - 1}")["check_status"] == "L7OK", 5)
            with Load(plan) as load:
                eventually(lambda: len(upstream.requests) == count, 10)
                lost_s = time.monotonic()
                upstream.ready = False
                eventually(lambda: len(load.report().answers) >= count, 10)
            first = load.report().answers[:count]
            assert max(answer.ended_s for answer in first) - lost_s < 6 * time_scale()


def test_another_worker_is_followed_and_the_one_before_may_end(tmp_path: Path) -> None:
    with pair(tmp_path, "users") as made:
        before = made.worker()
        Master(made.edge.server.master_socket).reload()
        eventually(lambda: made.worker() not in {before, 0}, 5)
        # Else it would stay for as long as a session follows its events.
        eventually(lambda: not Path(f"/proc/{before}").exists(), 5)
        with made.load() as load:
            time.sleep(0.5)
            made.lose("hung", 1)
        assert not load.report().failures(), load.report().summary()


@pytest.mark.parametrize(
    ("line", "server"),
    [
        (
            "Server svc_users/users-1 is DOWN, reason: Layer4 timeout, check duration: 9ms.",
            ("svc_users", "users-1"),
        ),
        ("Backup Server svc_users/b is DOWN, reason: Layer7 wrong status", ("svc_users", "b")),
        ("Server svc_users/users-1 is UP, reason: Layer7 check passed", None),
        ("Server svc_users/users-1 is going DOWN for maintenance.", None),
        ('Server svc_a/a is UP, info: "Server svc_users/users-1 is DOWN"', None),
        ("backend svc_users has no server available!", None),
    ],
)
def test_lines_of_the_log_that_tell_of_a_server_that_goes_down(
    line: str, server: tuple[str, str] | None
) -> None:
    assert gone_down(line) == server
