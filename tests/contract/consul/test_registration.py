"""Registration and its keeper against a real Consul agent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from discovery import ConsulApi, HttpCheck, Keeper, Registration, Route
from discovery.contract import parse_route
from discovery.errors import ConsulRefused, ConsulUnreachable, ContractError
from discovery.model import Status
from tests.support.eventually import eventually
from tests.support.servers import ConsulServer, consul, free_port

USERS = Registration(
    "users",
    "127.0.0.1",
    7100,
    "users-1",
    route=Route("users", ("/api/users",), balance="leastconn"),
    weight=50,
    check=HttpCheck(interval_s=1),
)


def test_registration_carries_route_weights_and_check(server: ConsulServer, api: ConsulApi) -> None:
    api.register(USERS)
    found = server.call("GET", "/v1/agent/service/users-1")
    assert isinstance(found, dict)
    assert parse_route("users", found["Meta"]) == USERS.route
    assert found["Weights"] == {"Passing": 50, "Warning": 1}
    checks = server.call("GET", "/v1/agent/checks")
    assert isinstance(checks, dict)
    definition = checks["service:users-1"]["Definition"]
    assert checks["service:users-1"]["Status"] == "critical"
    assert server.call("GET", "/v1/health/checks/users")
    assert isinstance(definition, dict)
    api.deregister("users-1")


def test_registering_without_check_removes_the_old_check(server: ConsulServer, api: ConsulApi) -> None:
    api.register(USERS)
    api.register(Registration("users", "127.0.0.1", 7100, "users-1", check=None))
    assert "service:users-1" not in (server.call("GET", "/v1/agent/checks") or {})  # type: ignore[operator]
    api.deregister("users-1")


def test_deregistering_twice_is_no_error(api: ConsulApi) -> None:
    api.register(USERS)
    assert api.holds(USERS)
    api.deregister("users-1")
    api.deregister("users-1")
    assert not api.holds(USERS)


def test_keeper_tells_the_agent_of_an_address_that_has_changed(server: ConsulServer, api: ConsulApi) -> None:
    present = [USERS, replace(USERS, address="127.0.0.2")]
    keeper = Keeper(api, lambda: present.pop(0), interval_s=0.0)
    keeper.turn()
    keeper.turn()
    found = server.call("GET", "/v1/agent/service/users-1")
    assert isinstance(found, dict)
    assert found["Address"] == "127.0.0.2"
    assert keeper.stop()


def test_keeper_registers_again_what_the_agent_forgot(server: ConsulServer, api: ConsulApi) -> None:
    keeper = Keeper(api, USERS, interval_s=0.2)
    keeper.start()
    try:
        eventually(lambda: api.holds(USERS), 2)
        server.call("PUT", "/v1/agent/service/deregister/users-1")
        eventually(lambda: api.holds(USERS), 2)
    finally:
        assert keeper.stop()
    assert not api.holds(USERS)


def test_keeper_mends_a_registration_that_was_changed(server: ConsulServer, api: ConsulApi) -> None:
    keeper = Keeper(api, USERS, interval_s=0.2)
    keeper.start()
    try:
        eventually(lambda: api.holds(USERS), 2)
        server.call("PUT", "/v1/agent/service/register", {"ID": "users-1", "Name": "users", "Port": 1})
        eventually(lambda: api.holds(USERS), 2)
    finally:
        keeper.stop()


def test_keeper_takes_its_check_back_from_a_service_that_registered_it(
    server: ConsulServer, api: ConsulApi
) -> None:
    # Consul asks whose service an id is, but not whose check: a stranger's token is enough for this.
    keeper = Keeper(api, USERS, interval_s=0.2)
    keeper.start()
    try:
        eventually(lambda: api.holds(USERS), 2)
        theft = {"CheckID": "service:users-1", "Name": "x", "TTL": "1h", "Status": "passing"}
        server.call(
            "PUT", "/v1/agent/service/register", {"ID": "evil-1", "Name": "evil", "Port": 1, "Check": theft}
        )
        eventually(lambda: check_owner(server, "service:users-1") == "users-1", 2)
    finally:
        keeper.stop()
        api.deregister("evil-1")


def check_owner(server: ConsulServer, check_id: str) -> object:
    checks = server.call("GET", "/v1/agent/checks")
    assert isinstance(checks, dict)
    return checks.get(check_id, {}).get("ServiceID")


def test_keeper_outlives_an_agent_that_restarts_empty() -> None:
    with consul() as server:
        api = ConsulApi(server.address)
        keeper = Keeper(api, USERS, interval_s=0.2)
        keeper.start()
        try:
            eventually(lambda: api.holds(USERS), 2)
            server.kill()
            eventually(lambda: keeper.state == "unreachable", 5)
            server.start()
            eventually(lambda: api.holds(USERS), 5)
        finally:
            keeper.stop()


class Stumbling(ConsulApi):
    """Raises what a keeper does not expect, three times of each."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.left = {"register": 3, "holds": 3}

    def _stumble(self, name: str) -> None:
        self.left[name] -= 1
        if self.left[name] >= 0:
            raise RuntimeError("unexpected")

    def register(self, registration: Registration, status: Status = "critical") -> None:
        self._stumble("register")
        super().register(registration, status)

    def holds(self, registration: Registration) -> bool:
        self._stumble("holds")
        return super().holds(registration)


def test_keeper_outlives_what_it_does_not_expect(server: ConsulServer, api: ConsulApi) -> None:
    stumbling = Stumbling(server.address)
    keeper = Keeper(stumbling, USERS, interval_s=0.1)
    keeper.start()
    try:
        eventually(lambda: stumbling.left["holds"] < 0 and api.holds(USERS), 10)
        server.call("PUT", "/v1/agent/service/deregister/users-1")
        eventually(lambda: api.holds(USERS), 2)
    finally:
        assert keeper.stop()


def test_bad_registration_is_refused_before_it_is_sent(api: ConsulApi) -> None:
    with pytest.raises(ContractError):
        Keeper(api, Registration("not a name", "127.0.0.1", 7100, "x")).start()


def test_environment_does_not_override_the_address(
    server: ConsulServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("CONSUL_HTTP_ADDR", closed)
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "00000000-0000-0000-0000-000000000000")
    monkeypatch.setenv("HTTP_PROXY", f"http://{closed}")
    monkeypatch.setenv("NO_PROXY", "")
    assert ConsulApi(server.address).leader()


def test_errors_of_consul_come_as_ours(server: ConsulServer) -> None:
    with pytest.raises(ConsulUnreachable):
        ConsulApi(f"127.0.0.1:{free_port()}").leader()
    with pytest.raises(ConsulRefused) as refused:
        ConsulApi(server.address).register(
            Registration("users", "127.0.0.1", 1, "users-1", check=HttpCheck(interval_s=0.0))
        )
    assert refused.value.status == 400


def test_key_values_come_back_as_they_were_written(api: ConsulApi) -> None:
    assert api.kv_entry("edge/none")[2] is None
    api.kv_put("edge/one", b'{"a": 1}')
    assert api.kv_entry("edge/one")[2] == b'{"a": 1}'
    assert api.kv_list("edge/") == {"edge/one": b'{"a": 1}'}
    index, modified, value = api.kv_entry("edge/one")
    assert index >= modified > 0
    assert value == b'{"a": 1}'
    api.kv_delete("edge/one")
    assert api.kv_list("edge/") == {}


def test_token_opens_what_the_anonymous_may_not_see() -> None:
    with consul(acl=True) as server:
        # A Consul that has just begun to serve may not have registered itself yet.
        eventually(lambda: "consul" in ConsulApi(server.address, server.token).catalog_services()[1], 5)
        assert ConsulApi(server.address).catalog_services()[1] == frozenset()
