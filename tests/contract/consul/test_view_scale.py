"""How fast a change is seen, and what following a large catalog costs."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from discovery import Change, ConsulApi, View
from tests.support.eventually import time_scale
from tests.support.servers import ConsulServer, consul

SERVICES, EACH = 300, 10


class Writer:
    """Writes the catalog over one connection of its own."""

    def __init__(self, server: ConsulServer) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)

    def put(self, path: str, body: object) -> None:
        self._connection.request("PUT", path, json.dumps(body))
        answer = self._connection.getresponse()
        text = answer.read()
        assert answer.status == 200, text

    def instance(self, service: str, number: int, status: str | None, weight: int = 100) -> None:
        """One instance in the catalog, with a check of this status or without any."""
        name = f"{service}-{number}"
        body: dict[str, object] = {
            "Node": "fake",
            "Address": "127.0.0.1",
            "Service": {
                "ID": name,
                "Service": service,
                "Address": f"127.1.{number // 250}.{number % 250 + 1}",
                "Port": 20000,
                "Meta": {"edge-weight": str(weight)},
            },
        }
        if status:
            body["Check"] = {"CheckID": f"service:{name}", "Status": status, "ServiceID": name, "Name": "c"}
        self.put("/v1/catalog/register", body)

    def gone(self, service: str, number: int) -> None:
        self.put("/v1/catalog/deregister", {"Node": "fake", "ServiceID": f"{service}-{number}"})


def seen_after(view: View, wanted: Callable[[Change], bool], act: Callable[[], None]) -> float:
    """Milliseconds from the end of `act` until a callback brings a change that is `wanted`."""
    seen = threading.Event()
    at: list[float] = []

    def listen(changes: list[Change], _: object) -> None:
        if not seen.is_set() and any(wanted(change) for change in changes):
            at.append(time.perf_counter())
            seen.set()

    view.on_change(listen)
    act()
    done = time.perf_counter()
    assert seen.wait(5 * time_scale()), "the change was not seen"
    return max(0.0, at[0] - done) * 1000


@pytest.fixture
def server() -> Iterator[ConsulServer]:
    with consul() as started:
        yield started


def started(server: ConsulServer) -> View:
    view = View(ConsulApi(server.address))
    view.start()
    assert view.ready(20)
    return view


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def plain_query(server: ConsulServer, writer: Writer, number: int) -> float:
    """Milliseconds from a change until a blocking query of one service, with nothing around it, has returned."""
    reader = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    returned: list[float] = []

    def ask(index: str) -> str:
        reader.request("GET", f"/v1/health/service/plain?index={index}&wait=5s")
        answer = reader.getresponse()
        answer.read()
        return answer.headers["X-Consul-Index"]

    def wait(index: str) -> None:
        ask(index)
        returned.append(time.perf_counter())

    waiting = threading.Thread(target=wait, args=(ask("0"),))
    waiting.start()
    time.sleep(0.01)  # until the question is there
    writer.instance("plain", 1, "passing", weight=number + 1)
    done = time.perf_counter()
    waiting.join(10)
    reader.close()
    return max(0.0, returned[0] - done) * 1000


def test_fifty_instances_in_a_row_are_each_seen_soon_after_a_plain_query_would_return(
    server: ConsulServer,
) -> None:
    """Beside each change, what this machine needs at that moment for a query alone."""
    view, writer = started(server), Writer(server)
    plain, came, left = [], [], []
    try:
        for number in range(50):
            plain.append(plain_query(server, writer, number))
            writer.instance("users", number, "critical")
            came.append(
                seen_after(
                    view,
                    lambda change: (
                        change.service == "users" and any(each.status == "passing" for each in change.after)
                    ),
                    lambda number=number: writer.instance("users", number, "passing"),  # type: ignore[misc]
                )
            )
            left.append(
                seen_after(
                    view,
                    lambda change: change.service == "users" and not change.after,
                    lambda number=number: writer.gone("users", number),  # type: ignore[misc]
                )
            )
    finally:
        view.stop()
    for name, times in (("plain", plain), ("came", came), ("left", left)):
        print(f"{name}: median {quantile(times, 0.5):.1f}, 0.9 {quantile(times, 0.9):.1f} ms", end="; ")
    # Three questions, one after the other, where the plain one is one; a pause of ours of 10 ms would show in the median.
    for times in (came, left, came[-20:]):
        assert quantile(times, 0.5) < 8 + 4 * quantile(plain, 0.5)
        assert quantile(times, 0.9) < 20 + 4 * quantile(plain, 0.9)


def test_changes_in_a_large_catalog_are_seen_soon_over_few_connections(server: ConsulServer) -> None:
    writer = Writer(server)
    for service in range(SERVICES):
        for number in range(EACH):
            writer.instance(f"s-{service}", number, "passing")
    before = connections(server.http_port)
    view = started(server)
    assert len(view.snapshot().services) == SERVICES + 1
    times: dict[str, list[float]] = {"plain": [], "status": [], "weight": [], "gone": []}
    try:
        for number in range(10):
            service = f"s-{number}"
            times["plain"].append(plain_look(server))
            times["status"].append(
                seen_after(
                    view,
                    lambda change: any(each.status == "critical" for each in change.after),
                    lambda service=service: writer.instance(service, 0, "critical"),  # type: ignore[misc]
                )
            )
            # No check changes here: only the service's own index tells.
            times["weight"].append(
                seen_after(
                    view,
                    lambda change: any(each.meta.get("edge-weight") == "7" for each in change.after),
                    lambda service=service: writer.instance(service, 1, None, weight=7),  # type: ignore[misc]
                )
            )
            times["gone"].append(
                seen_after(
                    view,
                    lambda change: len(change.after) == EACH - 1,
                    lambda service=service: writer.gone(service, 2),  # type: ignore[misc]
                )
            )
        assert connections(server.http_port) - before <= 8
    finally:
        view.stop()
    for kind, values in times.items():
        print(f"{kind}: median {quantile(values, 0.5):.1f} max {max(values):.1f} ms")
        # A look that is under way, and the one that finds it.
        assert quantile(values, 0.9) < 100 + 2 * quantile(times["plain"], 0.9), kind


def plain_look(server: ConsulServer) -> float:
    """Milliseconds for the index of every service, asked for one after the other with nothing around it."""
    reader = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    began = time.perf_counter()
    for service in range(SERVICES):
        reader.request("GET", f"/v1/health/service/s-{service}?filter=Service.ID%20%3D%3D%20%22%22")
        reader.getresponse().read()
    reader.close()
    return (time.perf_counter() - began) * 1000


def connections(port: int) -> int:
    """Established connections of this machine to a loopback port, seen from the client's side."""
    wanted = f":{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(wanted) and row[3] == "01" for row in rows)


def test_a_node_that_fails_counts_against_all_its_services(server: ConsulServer) -> None:
    writer = Writer(server)
    for number in range(3):
        writer.instance(f"s-{number}", 0, "passing")
    view = started(server)
    node = {"Node": "fake", "Address": "127.0.0.1"}
    try:
        for check, field, value in (
            ("serfHealth", "status", "critical"),
            ("_node_maintenance", "maintenance", True),
        ):
            for status in ("critical", "passing"):
                body = node | {"Check": {"CheckID": check, "Name": check, "Status": status}}
                hit = [f"s-{number}" for number in range(3)]
                if status == "passing" and check == "_node_maintenance":
                    writer.put("/v1/catalog/deregister", {"Node": "fake", "CheckID": check})
                else:
                    writer.put("/v1/catalog/register", body)
                wanted = value if status == "critical" else {"status": "passing", "maintenance": False}[field]
                until = time.monotonic() + 2 * time_scale()
                while any(getattr(view.snapshot().instances(name)[0], field) != wanted for name in hit):
                    assert time.monotonic() < until, (check, status)
                    time.sleep(0.01)
    finally:
        view.stop()


def test_same_id_on_two_nodes_and_empty_address(server: ConsulServer) -> None:
    writer = Writer(server)
    for node, address in (("one", "127.0.0.11"), ("two", "127.0.0.12")):
        service = {"ID": "twin", "Service": "twins", "Port": 7000}
        writer.put("/v1/catalog/register", {"Node": node, "Address": address, "Service": service})
    view = started(server)
    try:
        twins = view.snapshot().instances("twins")
        assert [(each.key, each.address) for each in twins] == [
            (("one", "twin"), "127.0.0.11"),
            (("two", "twin"), "127.0.0.12"),
        ]
    finally:
        view.stop()
