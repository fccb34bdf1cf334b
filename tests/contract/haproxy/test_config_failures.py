"""What a failing instance costs the clients of a service, by the template alone: no controller has a hand in it."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from haproxy.controller.config.model import EdgeState
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import eventually, time_scale
from tests.support.load import Load, Plan, Report
from tests.support.matrix import one_always
from tests.support.recorder import Answer, Request, Upstream, recorder_process, refusing_port
from tests.support.servers import free_ports


def status(running: Edge, number: int) -> str:
    return running.stat("svc_users", f"users-{number}")["status"]


def load(running: Edge, path: str = "/api/users/1", rate_per_s: float = 200.0) -> Load:
    return Load(Plan(port=running.port, paths=(path,), rate_per_s=rate_per_s))


def unharmed(report: Report) -> None:
    assert report.good()
    assert not report.failures(), report.summary()


def test_killed_instance_costs_no_request_and_all_down_is_answered_at_once_and_back_in_two_seconds(
    tmp_path: Path,
) -> None:
    ports = free_ports(3)
    with contextlib.ExitStack() as stack:
        processes = [recorder_process(tmp_path, "users", port) for port in ports]
        for process in processes:
            stack.callback(process.kill)
        running = stack.enter_context(edge(EdgeState((backend("users", *ports),))))
        checked = [f"users-{number}" for number in (1, 2, 3)]
        eventually(
            lambda: all(running.stat("svc_users", name)["check_status"] == "L7OK" for name in checked), 5
        )
        with load(running) as under_load:
            time.sleep(0.5)
            processes[0].signal(signal.SIGKILL)
            killed = time.monotonic()
            eventually(lambda: status(running, 1).startswith("DOWN"), 0.5, every_s=0.005)
            out_after_s = time.monotonic() - killed
            # By real checks: a request that took it out itself (HANA) would be ended with it, before it is tried elsewhere.
            assert running.stat("svc_users", "users-1")["check_status"] != "HANA"
            time.sleep(0.5)
        unharmed(under_load.report())
        # The first request to it is up to 15 ms after the kill; the rest is our looking.
        assert out_after_s < 0.2 * time_scale()
        for process in processes[1:]:
            process.signal(signal.SIGKILL)
        answered_at_once(running)
        stack.callback(recorder_process(tmp_path, "users", ports[1]).kill)
        back = time.monotonic()
        eventually(lambda: running.get("/api/users/1").status == 200, 2)
        assert time.monotonic() - back < 2 * time_scale()


def answered_at_once(running: Edge) -> None:
    """While all instances fall, and once all are down."""
    # A request in the moment of the fall may wait for one more attempt, and lose it too; from then on none waits.
    start = time.monotonic()
    assert running.get("/api/users/1").status in (502, 503)
    assert time.monotonic() - start < 1 * time_scale()
    eventually(lambda: all(status(running, n).startswith("DOWN") for n in (1, 2, 3)), 3)
    start = time.monotonic()
    answer = running.get("/api/users/1")
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert time.monotonic() - start < 0.15 * time_scale()


@pytest.mark.parametrize("balance", one_always("roundrobin", "leastconn", "source", "uri", "random", "first"))
def test_instance_that_answers_500_costs_no_get(balance: str) -> None:
    paths = tuple(f"/api/users/{n}" for n in range(30))
    with (
        Upstream("users", handler=lambda _: Answer(500)) as bad,
        Upstream("users") as one,
        Upstream("users") as two,
        edge(EdgeState((backend("users", bad.port, one.port, two.port, balance=balance),))) as running,
        Load(Plan(port=running.port, paths=paths, rate_per_s=300)) as under_load,
    ):
        time.sleep(1)
    unharmed(under_load.report())
    assert "users-1" not in under_load.report().served()


@pytest.mark.parametrize(
    ("path", "statuses"),
    # 0: HAProxy passes on the closing of a connection that had served before, as HTTP tells clients to expect.
    [("/api/users/fail", {500}), ("/api/users/crash", {502, 0})],
)
def test_url_that_fails_everywhere_takes_no_instance_out(path: str, statuses: set[int]) -> None:
    with (
        Upstream("users") as one,
        Upstream("users") as two,
        edge(EdgeState((backend("users", one.port, two.port),))) as running,
    ):
        with load(running, path, rate_per_s=300) as poison, load(running, rate_per_s=50) as under_load:
            time.sleep(1)
        answers = poison.report().answers
        assert answers
        assert {answer.status for answer in answers} <= statuses
        unharmed(under_load.report())
        assert all(status(running, number).startswith("UP") for number in (1, 2))


@dataclass
class Script:
    """An edge whose instances answer what the query of a request says: `?500,200` is 500 to the first try, and 200 from then on;
    0 closes the connection."""

    edge: Edge
    upstreams: tuple[Upstream, ...]

    def play(self, path: str, method: str = "GET", **headers: str) -> tuple[int, int]:
        """Status, and how many tries it took; each path once."""
        status = self.edge.get(path, method, **headers).status
        seen = [request for upstream in self.upstreams for request in upstream.requests]
        return status, sum(request.target == path for request in seen)


def scripted(service: str) -> Upstream:
    tries: Counter[str] = Counter()

    def handler(request: Request) -> Answer | None:
        statuses = request.target.partition("?")[2].split(",")
        status = int(statuses[min(tries[request.target], len(statuses) - 1)])
        tries[request.target] += 1
        # Closed each time: what happens to a connection that was in use before is another matter.
        return Answer(status, headers={"Connection": "close"}) if status else None

    return Upstream(service, handler=handler)


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    with scripted("users") as users, scripted("gateway-ai") as gateway:
        backends = (backend("gateway-ai", gateway.port), backend("users", users.port))
        with edge(EdgeState(backends)) as running:
            yield Script(running, (users, gateway))


@pytest.mark.parametrize("first", [0, 500, 502])
@pytest.mark.parametrize(
    ("method", "header", "tries"),
    [
        ("GET", {}, 2),
        ("HEAD", {}, 2),
        ("OPTIONS", {}, 2),
        ("POST", {}, 1),
        ("PUT", {}, 1),
        ("DELETE", {}, 1),
        ("PATCH", {}, 1),
    ]
    + [("POST", {"Idempotency_Key": "k1"}, 2)],
)
def test_only_what_may_run_twice_is_tried_again(
    script: Script, first: int, method: str, header: dict[str, str], tries: int
) -> None:
    path = f"/api/users/{method}-{len(header)}?{first},200"
    assert script.play(path, method, **header) == (200 if tries == 2 else first or 502, tries)


@pytest.mark.parametrize("failing", [0, 500])
def test_nothing_is_tried_more_than_twice(script: Script, failing: int) -> None:
    assert script.play(f"/api/users/always?{failing}") == (failing or 502, 2)


@pytest.mark.parametrize("shed", [503, 504])
def test_service_that_has_too_much_to_do_is_asked_once(script: Script, shed: int) -> None:
    assert script.play(f"/api/users/shed?{shed},200") == (shed, 1)


def test_gateway_5xx_is_an_answer_and_not_tried_again(script: Script) -> None:
    assert script.play("/api/gateway-ai/1?503,200") == (503, 1)


def test_late_answer_is_waited_for_once_and_no_longer_than_the_route_says() -> None:
    seen: list[Request] = []

    def late(request: Request) -> Answer:
        seen.append(request)
        time.sleep(2.5)
        return Answer()

    upstream = Upstream("users", handler=late)
    with upstream, edge(EdgeState((backend("users", upstream.port, timeout_s=1),))) as running:
        start = time.monotonic()
        assert running.get("/api/users/1").status == 504
        assert time.monotonic() - start < 1 + 1 * time_scale()
        assert len(seen) == 1


def test_refused_connection_is_tried_elsewhere_for_a_post_too() -> None:
    with (
        refusing_port() as dead,
        Upstream("users") as upstream,
        edge(EdgeState((backend("users", dead, upstream.port),))) as running,
    ):
        for _ in range(4):
            assert running.get("/api/users/1", "POST", b"x").status == 200
        assert len(upstream.requests) == 4


def test_port_taken_over_by_another_service_gets_no_traffic() -> None:
    with Upstream("posts") as other, Upstream("users") as right:
        with edge(EdgeState((backend("users", other.port, right.port),))) as running:
            eventually(lambda: running.stat("svc_users", "users-1")["status"].startswith("DOWN"), 4)
            other.requests.clear()
            for _ in range(6):
                assert running.get("/api/users/1").headers["x-served-by"] == "users-2"
            assert other.requests == []
        foreign = backend("users", other.port, check_identity=False)
        with edge(EdgeState((foreign,))) as running:
            eventually(lambda: running.stat("svc_users", "users-1")["check_status"] == "L7OK", 3)


def test_instance_that_is_not_ready_gets_no_traffic() -> None:
    with (
        Upstream("users", ready=False) as starting,
        Upstream("users") as right,
        edge(EdgeState((backend("users", starting.port, right.port),))) as running,
    ):
        eventually(lambda: running.stat("svc_users", "users-1")["status"].startswith("DOWN"), 4)
        starting.ready = True
        eventually(lambda: running.stat("svc_users", "users-1")["status"].startswith("UP"), 2)


def test_source_keeps_a_client_on_one_instance() -> None:
    with (
        Upstream("users") as one,
        Upstream("users") as two,
        edge(EdgeState((backend("users", one.port, two.port, balance="source"),))) as running,
    ):
        assert len({running.get(f"/api/users/{n}").headers["x-served-by"] for n in range(10)}) == 1
