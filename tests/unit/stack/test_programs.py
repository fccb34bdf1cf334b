"""What supervisord is given to run: each instance with its own identity, gateways with theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stack.fleet import FLEET
from stack.run.programs import Catalogue, Program
from stack.servers.vault import Vault
from stack.settings import StackSettings

SPECS = {spec.name: spec for spec in FLEET}


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    settings = StackSettings(breakwater_var=tmp_path)
    return Catalogue(settings, Vault(settings.secrets_dir), {}, {"gateway-ai": {"LOG_LEVEL": "debug"}})


def instance(catalogue: Catalogue, service: str) -> Program:
    return catalogue.instance(SPECS[service], 1, 20000)


@pytest.mark.parametrize("domain", ["identity", "business", "ai"])
def test_gateways_are_one_program_in_three_groups(
    catalogue: Catalogue, domain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the shell says goes for services; a gateway stays what it is.
    monkeypatch.setenv("WORKER_CLASS", "gthread")
    monkeypatch.setenv("GATEWAY_DOMAIN", "business")
    program = instance(catalogue, f"gateway-{domain}")
    assert program.command[1:] == ("-m", "gateway")
    assert program.environment["GATEWAY_DOMAIN"] == domain
    assert program.environment["WORKER_CLASS"] == "gevent"
    assert program.environment["INSTANCE_ID"] == f"gateway-{domain}-1"
    assert str(catalogue.settings.consul_http_port) in program.environment["EDGE_CONTROL_PORTS"].split(",")
    assert SPECS[f"gateway-{domain}"].instances == 2


def test_environment_of_one_service_is_no_other_ones(catalogue: Catalogue) -> None:
    assert instance(catalogue, "gateway-ai").environment["LOG_LEVEL"] == "debug"
    assert "LOG_LEVEL" not in instance(catalogue, "gateway-business").environment
    assert "GATEWAY_DOMAIN" not in instance(catalogue, "users").environment


def test_rabbitmq_runs_where_it_is_asked_for_and_each_service_is_itself_to_it(tmp_path: Path) -> None:
    settings = StackSettings(breakwater_var=tmp_path, events="rabbitmq")
    catalogue = Catalogue(settings, Vault(settings.secrets_dir), {}, {})
    files = {name: instance(catalogue, name).environment.get("EVENTS_URL_FILE") for name in SPECS}
    assert {name for name, file in files.items() if not file} == {n for n in SPECS if n.startswith("gateway")}
    for name, file in files.items():
        if file:
            password = catalogue.vault.rabbitmq_password(name)
            assert Path(file).read_text() == f"amqp://{name}:{password}@127.0.0.1:6392/breakwater\n"
            assert Path(file).stat().st_mode & 0o777 == 0o600
    assert [one.name for one in catalogue.infrastructure()][4:6] == ["rabbitmq-epmd", "rabbitmq"]
    users = json.loads((tmp_path / "rabbitmq" / "definitions.json").read_text())["users"]
    assert {one["name"] for one in users} == {name for name, file in files.items() if file}


def test_without_it_nothing_is_known_of_rabbitmq(catalogue: Catalogue, tmp_path: Path) -> None:
    assert "EVENTS_URL_FILE" not in instance(catalogue, "users").environment
    assert "rabbitmq" not in [one.name for one in catalogue.infrastructure()]
    assert not (tmp_path / "rabbitmq").exists()


def test_every_service_is_itself_to_consul_and_redis(catalogue: Catalogue) -> None:
    for name in SPECS:
        environment = instance(catalogue, name).environment
        assert environment["REDIS_USERNAME"] == name
        assert environment["REDIS_PASSWORD_FILE"].endswith(f"/redis/{name}.password")
        assert environment["CONSUL_HTTP_TOKEN_FILE"].endswith(f"/consul/{name}.token")
    passwords = {
        Path(instance(catalogue, name).environment["REDIS_PASSWORD_FILE"]).read_text() for name in SPECS
    }
    assert len(passwords) == len(SPECS)
