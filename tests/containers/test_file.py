"""docker-compose.yml as it is written: what every container is denied, which network it is on, what is published."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from stack.fleet import FLEET
from stack.settings import REPO

pytestmark = pytest.mark.needs_stack

FILE = REPO / "docker-compose.yml"
# Store → its network, and the variable by which a service says that it keeps something there.
STORES = {
    "redis-cache": ("cache", "REDIS_CACHE_URL"),
    "redis-state": ("state", "REDIS_STATE_URL"),
    "postgres": ("database", "DATABASE_URL_FILE"),
}
# The database's own steps, which run to their end before services begin; and a broker of events, which takes Redis' place.
BESIDE_STORES = {"databases", "rabbitmq"}
WAYS_IN = {"public": {"haproxy"}, "console": {"consul"}}
ONLY_BY_FILE = re.compile(r"SECRET|TOKEN|PASSWORD|KEY|KEK|DATABASE_URL|CREDENTIAL")
VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)")


def compose(*words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """`docker compose …` on the file, or on the text given, with none of its variables set."""
    known = set(VARIABLE.findall(FILE.read_text()))
    environment = {name: value for name, value in os.environ.items() if name not in known}
    source = [] if given is None else ["--project-directory", str(REPO), "--file", "-"]
    return subprocess.run(
        ["docker", "compose", *source, "--profile", "*", *words],
        cwd=REPO,
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
    )


def read(given: str | None = None) -> dict[str, Any]:
    """The file, or a text in its place, with its defaults filled in."""
    done = compose("config", "--format", "json", given=given)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = read()["services"]
    return found


def is_step(one: Mapping[str, Any]) -> bool:
    """Whether it runs to its end, and the others wait for that."""
    return bool(one["restart"] == "no")


def assert_confined(name: str, one: Mapping[str, Any]) -> None:
    assert one["user"] == "10001:10001", name
    assert one["read_only"] is True, name
    assert one["cap_drop"] == ["ALL"], name
    assert not one.get("cap_add"), name
    assert one["security_opt"] == ["no-new-privileges:true"], name
    for key in ("privileged", "devices", "pid", "ipc", "userns_mode", "extra_hosts"):
        assert not one.get(key), f"{name}: {key}"
    assert one.get("network_mode", "none") == "none", name
    # What has no folder for its short-lived files writes to its volumes alone.
    assert one.get("tmpfs") or any("/state/" in mount["target"] for mount in one["volumes"]), name
    assert 0 < int(one["mem_limit"]) <= 1 << 30, name
    assert 0 < one["pids_limit"] <= 512, name
    assert one["restart"] in {"unless-stopped", "no"}, name
    assert is_step(one) or one["healthcheck"]["test"], name
    assert one["logging"]["options"] == {"max-size": "10m", "max-file": "3"}, name


def test_compose_reads_the_file_without_a_word_of_complaint() -> None:
    done = compose("config", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_variable_has_its_line_in_the_documentation_and_no_line_is_of_none() -> None:
    known = set(VARIABLE.findall(FILE.read_text()))
    lines = (REPO / "docs" / "containers.md").read_text().splitlines()
    first = [line.split("|")[1] for line in lines if line.startswith("| `")]
    told = [name for column in first for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", column)]
    assert sorted(told) == sorted(known)


def test_every_container_is_confined_and_limited(services: dict[str, Any]) -> None:
    for name, one in services.items():
        assert_confined(name, one)


def test_images_have_a_version(services: dict[str, Any]) -> None:
    arguments = services["init"]["build"]["args"].values()
    for image in {*(one["image"] for one in services.values()), *arguments}:
        assert re.fullmatch(r"[a-z0-9./-]+:\d[\w.-]*", image), image


def test_secrets_come_by_files_alone(services: dict[str, Any]) -> None:
    for name, one in services.items():
        for variable, value in (one.get("environment") or {}).items():
            if ONLY_BY_FILE.search(variable) and not variable.startswith("AUTH_ARGON2_"):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
                assert value.startswith("/secrets/"), f"{name}: {variable}"
            assert not re.search(r"://[^/]*@", value or ""), f"{name}: {variable} has a password in its URL"


def test_only_the_edge_is_published_beyond_loopback(services: dict[str, Any]) -> None:
    published = {
        (name, port["target"], port.get("host_ip", ""))
        for name, one in services.items()
        for port in one.get("ports", ())
    }
    assert published == {
        ("haproxy", 8080, "0.0.0.0"),
        ("haproxy", 8443, "0.0.0.0"),
        ("haproxy", 8404, "127.0.0.1"),
        ("consul", 8500, "127.0.0.1"),
    }


def test_a_stores_network_holds_those_alone_that_keep_something_in_it(services: dict[str, Any]) -> None:
    for store, (network, variable) in STORES.items():
        users = {name for name, one in services.items() if variable in (one.get("environment") or {})}
        there = {name for name, one in services.items() if network in (one.get("networks") or ())}
        assert there - BESIDE_STORES == users | {store}
        assert list(services[store]["networks"]) == [network]
        assert users, f"no service uses {store}"


def test_only_the_ways_in_lead_out_of_the_networks() -> None:
    found = read()
    inner = {name for name, one in found["networks"].items() if one.get("internal")}
    assert set(found["networks"]) - inner == set(WAYS_IN)
    for network, allowed in WAYS_IN.items():
        there = {name for name, one in found["services"].items() if network in (one.get("networks") or ())}
        assert there == allowed
        options = found["networks"][network]["driver_opts"]
        assert options == {"com.docker.network.bridge.enable_ip_masquerade": "false"}


def test_the_file_runs_what_the_stack_without_docker_runs(services: dict[str, Any]) -> None:
    for spec in FLEET:
        one = services[spec.name]
        assert one["deploy"]["replicas"] == spec.instances
        assert one["command"] == ["python", "-m", spec.module]
        assert ("DATABASE_URL_FILE" in one["environment"]) == spec.database
        assert one["environment"]["REDIS_USERNAME"] == spec.name
        for variable in spec.environment:
            assert one["environment"][variable] == spec.environment[variable]


def test_one_block_more_is_a_service_more_and_is_confined_like_the_others(services: dict[str, Any]) -> None:
    """As the file's first lines and docs/containers.md say: a block like that of `products`, and its volume."""
    text = FILE.read_text()
    block = re.search(r"\n  products:\n(?:    .*\n|\n(?=    ))+", text)
    assert block
    assert len(block[0].strip().splitlines()) <= 10, "a service more should be a few lines"
    more = text.replace(block[0], block[0] + block[0].replace("products", "stock"))
    for line in ("      - own-products:/state/own/products\n", "  own-products:\n"):
        assert more.count(line) == 1
        more = more.replace(line, line + line.replace("products", "stock"))
    found = read(more)["services"]
    assert set(found) == {*services, "stock"}
    assert_confined("stock", found["stock"])
    assert json.loads(json.dumps(found["products"]).replace("products", "stock")) == found["stock"]
    done = compose("config", "--quiet", given=more)
    assert (done.returncode, done.stderr) == (0, "")
