"""The view against a real Consul."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from discovery import ConsulApi, HttpCheck, Registration, View
from discovery.balancing.balancer import usable
from tests.support.eventually import eventually
from tests.support.servers import ConsulServer


@pytest.fixture
def view(api: ConsulApi) -> Iterator[View]:
    followed = View(api)
    followed.start()
    assert followed.ready(10)
    yield followed
    followed.stop()


def registration(name: str, port: int, **more: object) -> Registration:
    return Registration(name=name, address="127.0.0.1", port=port, id=f"{name}-{port}", check=None, **more)  # type: ignore[arg-type]


def test_registered_instance_is_seen_with_its_weight_and_gone_when_deregistered(
    api: ConsulApi, view: View
) -> None:
    seen: list[str] = []
    view.on_change(lambda changes, snapshot: seen.extend(change.service for change in changes))
    api.register(registration("one", 7001, weight=40))
    found = eventually(lambda: view.snapshot().instances("one"), 2)
    assert (found[0].address, found[0].port, found[0].meta["edge-weight"]) == ("127.0.0.1", 7001, "40")
    api.deregister("one-7001")
    eventually(lambda: not view.snapshot().instances("one"), 2)
    assert seen.count("one") == 2


def test_address_of_an_external_node_is_followed(server: ConsulServer, view: View) -> None:
    """Its instances have none of their own. More than once: the first change may meet the sweep that a new service causes."""
    node: dict[str, object] = {"Node": "external", "Address": "127.0.0.11"}
    service = {"ID": "eight-1", "Service": "eight", "Port": 7008}
    server.call("PUT", "/v1/catalog/register", node | {"Service": service})
    eventually(lambda: view.snapshot().instances("eight"), 2)
    for address in ("127.0.0.12", "127.0.0.13", "127.0.0.14"):
        server.call("PUT", "/v1/catalog/register", node | {"Address": address})
        eventually(lambda: view.snapshot().instances("eight")[0].address == address, 2)  # noqa: B023


def test_maintenance_of_instance_is_not_called_critical(
    server: ConsulServer, api: ConsulApi, view: View
) -> None:
    api.register(registration("three", 7003))
    eventually(lambda: usable(view.snapshot().instances("three")), 2)
    server.call("PUT", "/v1/agent/service/maintenance/three-7003?enable=true")
    eventually(lambda: not usable(view.snapshot().instances("three")), 2)
    assert view.snapshot().instances("three")[0].status == "passing"
    server.call("PUT", "/v1/agent/service/maintenance/three-7003?enable=false")
    eventually(lambda: usable(view.snapshot().instances("three")), 2)


def test_failing_check_is_seen(api: ConsulApi, view: View) -> None:
    # Whether it is seen passing before its first check is a matter of luck.
    checked = Registration("four", "127.0.0.1", 1, "four-1", check=HttpCheck(interval_s=1, timeout_s=0.2))
    api.register(checked, "passing")
    eventually(lambda: view.snapshot().instances("four")[0].status == "critical", 7)


def test_view_of_some_services_does_not_see_others(api: ConsulApi) -> None:
    api.register(registration("five", 7005))
    api.register(registration("six", 7006))
    narrow = View(api, services={"five"})
    narrow.start()
    try:
        assert narrow.ready(5)
        eventually(lambda: narrow.snapshot().instances("five"), 2)
        assert set(narrow.snapshot().services) == {"five"}
    finally:
        narrow.stop()
