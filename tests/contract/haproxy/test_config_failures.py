"""What a failing instance costs the clients of a service, by the template alone: no controller has a hand in it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from haproxy.controller.config.model import EdgeState
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import time_scale
from tests.support.load import Load, Plan, Report
from tests.support.recorder import Answer, Request, Upstream, refusing_port


@dataclass
class House:
    """An edge in front of `users`, whose instance answers what the query of a request says: `?500,200` is 500 to the first try,
    and 200 from then on; 0 closes the connection. `gateway-ai` does the same. `pair` has two instances, `lame` one that refuses
    connections and one that answers, and `late` answers after its route's time."""

    edge: Edge
    upstreams: tuple[Upstream, ...]

    def play(self, path: str, method: str = "GET", **headers: str) -> tuple[int, int]:
        """Status, and how many tries it took; each path once."""
        status = self.edge.get(path, method, **headers).status
        seen = [request for upstream in self.upstreams for request in upstream.requests]
        return status, sum(request.target == path for request in seen)

    def load(self, path: str, rate_per_s: float) -> Load:
        return Load(Plan(port=self.edge.port, paths=(path,), rate_per_s=rate_per_s))


def scripted(service: str) -> Upstream:
    tries: Counter[str] = Counter()

    def handler(request: Request) -> Answer | None:
        statuses = request.target.partition("?")[2].split(",")
        status = int(statuses[min(tries[request.target], len(statuses) - 1)])
        tries[request.target] += 1
        # Closed each time: what happens to a connection that was in use before is another matter.
        return Answer(status, headers={"Connection": "close"}) if status else None

    return Upstream(service, handler=handler)


def late(request: Request) -> Answer:
    time.sleep(2.5)
    return Answer()


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with (
        scripted("users") as users,
        scripted("gateway-ai") as gateway,
        Upstream("late", handler=late) as slow,
        Upstream("pair") as one,
        Upstream("pair") as two,
        refusing_port() as dead,
        Upstream("lame") as lame,
    ):
        backends = (
            backend("gateway-ai", gateway.port),
            backend("lame", dead, lame.port),
            backend("late", slow.port, timeout_s=1),
            backend("pair", one.port, two.port),
            backend("sticky", one.port, two.port, balance="source", check_identity=False),
            backend("users", users.port),
        )
        with edge(EdgeState(backends)) as running:
            yield House(running, (users, gateway, slow, lame))


def unharmed(report: Report) -> None:
    assert report.good()
    assert not report.failures(), report.summary()


@pytest.mark.long
@pytest.mark.parametrize("balance", ["roundrobin", "leastconn", "source", "uri", "random", "first"])
def test_instance_that_answers_500_costs_no_get_however_its_service_is_balanced(balance: str) -> None:
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
    [("/api/pair/fail", {500}), ("/api/pair/crash", {502, 0})],
)
def test_url_that_fails_everywhere_takes_no_instance_out(house: House, path: str, statuses: set[int]) -> None:
    with house.load(path, 200) as poison, house.load("/api/pair/1", 50) as under_load:
        time.sleep(1)
    answers = poison.report().answers
    assert answers
    assert {answer.status for answer in answers} <= statuses
    unharmed(under_load.report())
    assert all(house.edge.stat("svc_pair", f"pair-{n}")["status"].startswith("UP") for n in (1, 2))


@pytest.mark.parametrize("first", [0, 500, 502])
@pytest.mark.parametrize(
    ("method", "header", "tries"),
    [(method, {}, 2) for method in ("GET", "HEAD", "OPTIONS")]
    + [(method, {}, 1) for method in ("POST", "PUT", "DELETE", "PATCH")]
    + [("POST", {"Idempotency_Key": "k1"}, 2)],
)
def test_only_what_may_run_twice_is_tried_again(
    house: House, first: int, method: str, header: dict[str, str], tries: int
) -> None:
    path = f"/api/users/{method}-{len(header)}?{first},200"
    assert house.play(path, method, **header) == (200 if tries == 2 else first or 502, tries)


@pytest.mark.parametrize(
    ("path", "status", "tries"),
    [
        ("/api/users/always?0", 502, 2),
        ("/api/users/always?500", 500, 2),
        # A service that has too much to do is asked once; what a gateway answers it has thought about.
        ("/api/users/shed?503,200", 503, 1),
        ("/api/users/shed?504,200", 504, 1),
        ("/api/gateway-ai/1?503,200", 503, 1),
    ],
)
def test_nothing_is_tried_more_than_twice_or_where_it_does_not_help(
    house: House, path: str, status: int, tries: int
) -> None:
    assert house.play(path) == (status, tries)


def test_late_answer_is_waited_for_once_and_no_longer_than_the_route_says(house: House) -> None:
    start = time.monotonic()
    assert house.play("/api/late/1") == (504, 1)
    assert time.monotonic() - start < 1 + 1 * time_scale()


def test_refused_connection_is_tried_elsewhere_for_a_post_too(house: House) -> None:
    assert [house.play(f"/api/lame/{n}", "POST") for n in range(4)] == [(200, 1)] * 4


def test_source_keeps_a_client_on_one_instance(house: House) -> None:
    assert len({house.edge.get(f"/api/sticky/{n}").headers["x-served-by"] for n in range(10)}) == 1
