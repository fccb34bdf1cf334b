"""Our Consul files on the real Consul: which token may do what, and a cluster of three that elects and outlives a loss."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stack import http
from stack.run.ports import free_ports
from stack.servers import consul_agent
from stack.servers.consul_agent import ConsulAcl
from stack.servers.vault import Vault
from tests.support.consul_agents import Agent, agent
from tests.support.eventually import eventually
from tests.support.faulty import Passing, faulty_proxy

GATEWAY = "gateway-business"


@pytest.fixture(scope="module")
def consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent(tmp_path_factory.mktemp("consul"), "common.hcl", "server.hcl") as one:
        one.acl.wait_ready(30)
        one.acl.apply(["users", "posts", GATEWAY], production=False)
        yield one


def test_service_registers_its_own_name_and_takes_no_other_away(consul: Agent) -> None:
    """What else a service's token cannot do is in tests/security/test_consul_tokens.py."""
    assert consul.register("users", "users") == 200
    assert consul.register("users", "users-grpc") == 200, "the port where it speaks gRPC"
    for name in ("posts", "posts-grpc", "users2", "user", "consul"):
        assert consul.register("users", name) == 403
    assert consul.register("posts", "posts") == 200
    assert consul.status("users", "PUT", "/v1/agent/service/deregister/posts-1") == 403
    assert consul.status("posts", "PUT", "/v1/agent/service/deregister/posts-1") == 200


def test_service_finds_all_others(consul: Agent) -> None:
    assert consul.register("users", "users") == 200
    for path in (
        "/v1/health/state/any",
        "/v1/catalog/services",
        "/v1/health/service/users",
        "/v1/agent/service/users-1",
    ):
        assert consul.status("posts", "GET", path) == 200
    assert "users" in eventually(lambda: consul.answer("posts", "GET", "/v1/catalog/services").json(), 10)


@pytest.mark.parametrize("name", ["users", GATEWAY, "operator", None])
def test_verdicts_are_written_by_the_controller_only(consul: Agent, name: str | None) -> None:
    path = "/v1/kv/edge/status/edge/users"
    assert consul.status(name, "PUT", path, "{}") == 403
    assert consul.status("controller", "PUT", path, "{}") == 200
    assert consul.status("controller", "GET", path) == 200


def test_policy_of_paths_is_written_by_the_operator_only(consul: Agent) -> None:
    path = "/v1/kv/edge/policy/owners"
    for name in ("users", "controller", GATEWAY, None):
        assert consul.status(name, "PUT", path, {}) == 403
    assert consul.status("operator", "PUT", path, {}) == 200
    assert consul.status("controller", "GET", path) == 200


def test_owners_are_agreed_on_by_the_controllers(consul: Agent) -> None:
    path = "/v1/kv/edge/owners"
    for name in ("users", GATEWAY, None):
        assert consul.status(name, "PUT", path, {}) == 403
    assert consul.status("controller", "PUT", f"{path}?cas=0", {}) == 200


@pytest.mark.parametrize("name", ["users", "controller", GATEWAY, "operator", "agent", None])
def test_only_the_management_token_sees_tokens(consul: Agent, name: str | None) -> None:
    assert consul.status(name, "GET", "/v1/acl/tokens") == 403
    assert consul.status("master", "GET", "/v1/acl/tokens") == 200


@pytest.mark.parametrize("name", ["controller", "operator", None])
def test_readers_register_nothing(consul: Agent, name: str | None) -> None:
    assert consul.register(name, "users") == 403


def test_gateway_registers_itself_and_finds_all_others(consul: Agent) -> None:
    assert consul.register(GATEWAY, GATEWAY) == 200
    assert consul.register("users", "users") == 200
    for path in ("/v1/health/state/any", "/v1/health/service/users", "/v1/catalog/nodes"):
        assert consul.answer(GATEWAY, "GET", path).json(), path
    assert {consul.register(GATEWAY, name) for name in ("users", "gateway-ai", "gateway")} == {403}
    assert consul.status(GATEWAY, "PUT", "/v1/agent/service/deregister/users-1") == 403
    for path in ("/v1/kv/edge/status/edge/users", "/v1/kv/edge/policy/owners"):
        assert consul.status("operator", "GET", path) in {200, 404}
        assert consul.status(GATEWAY, "GET", path) == 403
    assert consul.status(GATEWAY, "PUT", "/v1/agent/service/deregister/gateway-business-1") == 200


@pytest.mark.parametrize("name", ["users", "controller", GATEWAY, None])
def test_only_the_operator_reads_the_agents_configuration(consul: Agent, name: str | None) -> None:
    assert consul.status(name, "GET", "/v1/agent/self") == 403
    assert consul.status("operator", "GET", "/v1/agent/self") == 200


def test_script_check_is_refused(consul: Agent) -> None:
    body = {"Name": "users", "ID": "users-s", "Check": {"Args": ["true"], "Interval": "10s"}}
    answer = consul.answer("users", "PUT", "/v1/agent/service/register", body)
    assert answer.status_code != 200
    assert b"Scripts are disabled" in answer.content


def test_remote_exec_is_off(consul: Agent) -> None:
    assert consul.answer("master", "GET", "/v1/agent/self").json()["DebugConfig"]["DisableRemoteExec"] is True


def test_gossip_is_encrypted_and_everything_on_loopback(consul: Agent) -> None:
    config = consul.answer("master", "GET", "/v1/agent/self").json()["DebugConfig"]
    assert config["EncryptKey"] == "hidden"
    assert {config["BindAddr"]["IP"] if isinstance(config["BindAddr"], dict) else config["BindAddr"]} == {
        "127.0.0.1"
    }
    assert all("127.0.0.1" in str(address) for address in config["HTTPAddrs"] + config["DNSAddrs"])
    assert config["UIConfig"]["Enabled"] if "UIConfig" in config else config["EnableUI"]


def test_ui_shows_services_without_login_until_production(consul: Agent) -> None:
    def sees() -> tuple[bool, bool]:
        services = consul.answer(None, "GET", "/v1/catalog/services").json()
        return bool(services), bool(consul.answer(None, "GET", "/v1/catalog/nodes").json())

    assert consul.status(None, "GET", "/ui/") == 200
    eventually(lambda: sees() == (True, True), 5)
    consul.acl.apply(["users"], production=True)
    eventually(lambda: sees() == (False, False), 5)
    consul.acl.apply(["users"], production=False)
    eventually(lambda: sees() == (True, True), 5)


class Known(BaseException):
    """Ends a keeper that would go on for ever, and outlives every Exception."""


def known() -> None:
    raise Known


def test_keeper_of_tokens_outlives_answers_that_are_none(consul: Agent) -> None:
    def garbage(answer: Passing) -> Passing:
        asked.append(answer.path)
        body = (b"<html>", b"[", b'"hello"', b"null")[len(asked) // 3 % 4]
        return replace(answer, body=body) if len(asked) < 30 else answer

    asked: list[str] = []
    with faulty_proxy(consul.settings.consul_http_port) as proxy:
        acl = ConsulAcl(proxy.address, consul.vault)
        with proxy.failing(garbage), pytest.raises(Known):
            consul_agent.keep_tokens(acl, ["users"], production=False, every_s=0.01, known=known)
    assert len(asked) >= 30
    assert consul.register("users", "users") == 200


def test_keeper_brings_a_consul_up_to_date_that_has_lost_nothing(consul: Agent) -> None:
    """As after an upgrade, with a service more, a token that all gateways shared, and the production switch."""
    old = {"Name": "gateway", "Rules": 'service_prefix "" { policy = "read" }'}
    assert consul.status("master", "PUT", "/v1/acl/policy", old) == 200
    secret = consul.vault.consul_token("gateway")
    token = {"SecretID": secret, "Policies": [{"Name": "gateway"}]}
    assert consul.status("master", "PUT", "/v1/acl/token", token) == 200

    def accepted() -> int:
        headers = {"X-Consul-Token": secret}
        path = "/v1/acl/token/self"
        return http.call(consul.settings.consul_address, "GET", path, headers=headers).status_code

    assert accepted() == 200
    assert consul.answer(None, "GET", "/v1/catalog/nodes").json()
    try:
        with pytest.raises(Known):
            consul_agent.keep_tokens(consul.acl, ["users", "pears"], production=True, known=known)
        assert consul.register("pears", "pears") == 200
        eventually(lambda: consul.answer(None, "GET", "/v1/catalog/nodes").json() == [], 5)
        assert accepted() == 403
        names = {entry["Name"] for entry in consul.answer("master", "GET", "/v1/acl/policies").json()}
        assert "gateway" not in names
        assert "gateway" not in consul.vault.consul_names()
    finally:
        consul.acl.apply(["users"], production=False)


def test_applying_again_makes_nothing_new(consul: Agent) -> None:
    before = {entry["AccessorID"] for entry in consul.answer("master", "GET", "/v1/acl/tokens").json()}
    consul.acl.apply(["users", "posts", GATEWAY], production=False)
    assert {
        entry["AccessorID"] for entry in consul.answer("master", "GET", "/v1/acl/tokens").json()
    } == before


def test_local_file_is_private(consul: Agent) -> None:
    assert (consul.settings.var / "consul" / "local.json").stat().st_mode & 0o777 == 0o600


def test_empty_consul_gets_the_same_tokens_back_and_lost_secrets_are_made_again(tmp_path: Path) -> None:
    with agent(tmp_path, "common.hcl", "server.hcl") as one:
        one.acl.wait_ready(30)
        one.acl.apply(["users"], production=False)
        token = one.vault.consul_token("users")
    shutil.rmtree(tmp_path / "consul" / "data")
    with agent(tmp_path, "common.hcl", "server.hcl") as one:
        one.acl.wait_ready(30)
        assert not one.acl.complete()
        one.acl.apply([], production=False)
        assert one.vault.consul_token("users") == token
        assert one.register("users", "users") == 200
    for file in (tmp_path / "secrets").rglob("*"):
        if file.is_file():
            file.unlink()
    with agent(tmp_path, "common.hcl", "server.hcl") as one:
        one.acl.wait_ready(30)
        one.acl.apply(["users"], production=False)
        assert one.vault.consul_token("users") != token
        assert one.register("users", "users") == 200


@pytest.mark.long
def test_three_servers_elect_and_outlive_one_and_a_client_joins(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "secrets")
    ports = iter(free_ports(16))
    serf = [next(ports) for _ in range(4)]
    join = [f"127.0.0.1:{port}" for port in serf[:3]]
    with contextlib.ExitStack() as cleanup:
        agents = []
        for number, port in enumerate(serf):
            kind = "client.hcl" if number == 3 else "cluster.hcl"
            rpc, http, dns = (next(ports) for _ in range(3))
            changes = {
                "node_name": f"node-{number}",
                "bind_addr": "127.0.0.1",
                "retry_join": join,
                "retry_interval": "1s",
                "ports": {"http": http, "dns": dns, "server": rpc, "serf_lan": port},
            }
            var = tmp_path / str(number)
            var.mkdir()
            one = cleanup.enter_context(agent(var, "common.hcl", kind, changes=changes, vault=vault))
            one.settings = one.settings.model_copy(update={"consul_http_port": http})
            agents.append(one)
        agents[0].acl.wait_ready(60)
        agents[0].acl.apply(["users"], production=False)
        eventually(lambda: len(peers(agents[0])) == 3, 30)
        client = agents[3]
        eventually(lambda: client.register("users", "users") == 200, 30)
        leader = leader_of(agents[0])
        lost = next(one for one in agents[:3] if rpc_address(one) == leader)
        lost.process.kill()
        left = next(one for one in agents[:3] if one is not lost)
        eventually(lambda: leader_of(left) not in {"", leader}, 60)
        eventually(lambda: "users" in client.answer("users", "GET", "/v1/catalog/services").json(), 30)


def peers(one: Agent) -> list[str]:
    return one.answer("master", "GET", "/v1/status/peers").json()


def leader_of(one: Agent) -> str:
    return str(one.answer("master", "GET", "/v1/status/leader").json())


def rpc_address(one: Agent) -> str:
    config = json.loads((one.settings.var / "consul" / "local.json").read_text())
    return f"127.0.0.1:{config['ports']['server']}"
