"""What an attacker in one container could do, and what another machine can reach: as little as may be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import cast

import pytest
from docker.models.containers import Container

from stack.fleet import FLEET
from tests.containers import inside
from tests.containers.inside import Place, one_of_each, reach, shell
from tests.support.container_fleet import SERVICE, ContainerFleet
from tests.support.eventually import eventually
from tests.support.fleet import Fleet

pytestmark = pytest.mark.needs_stack

USER_ID = "10001"
# Store → its port, its network, and the variable by which a service says that it keeps something there.
STORES = {
    "redis-cache": (6379, "cache", "REDIS_CACHE_URL"),
    "redis-state": (6379, "state", "REDIS_STATE_URL"),
    "postgres": (5432, "database", "DATABASE_URL_FILE"),
}
# Server → the secrets of the vault that it needs to know, beside those with a folder of their own.
SERVERS_KNOW = {
    "consul": r"consul/",
    "consul-tokens": r"consul/[a-z-]+\.token$",
    "controller": r"consul/controller\.token",
    "haproxy": r"(?!)",
    "mail": r"(?!)",
    "redis-cache": r"redis/",
    "redis-state": r"redis/",
    "postgres": r"postgres/postgres\.password",
}
MOUNTED = {
    "consul": {"consul"},
    "consul-tokens": set(),
    "controller": {"edge", "run"},
    "haproxy": {"edge", "run"},
    "mail": {"mail"},
    "redis-cache": {"redis-cache"},
    "redis-state": {"redis-state"},
    "postgres": {"postgres"},
}
LISTENING = (8000, 8080, 8443, 8404, 8405, 8500, 8600, 8300, 8301, 6379, 5432, 8025)


@pytest.fixture
def containers(fleet: Fleet) -> ContainerFleet:
    return cast(ContainerFleet, fleet)


@pytest.fixture
def each(containers: ContainerFleet) -> dict[str, Container]:
    """One running container of every service of the file that does not end by itself."""
    found = one_of_each(containers)
    endless = {name for name, one in containers.file()["services"].items() if one["restart"] != "no"}
    assert set(found) == endless == {*MOUNTED, *(spec.name for spec in FLEET)}
    return found


def test_no_process_is_root_or_has_or_can_get_a_capability(each: dict[str, Container]) -> None:
    for name, one in each.items():
        text = shell(one, 'for one in /proc/[0-9]*/status; do cat "$one" 2>/dev/null; done; true')
        processes = [
            dict(re.findall(r"^(\w+):\s*(.*)$", part, re.MULTILINE))
            for part in re.split(r"^(?=Name:)", text, flags=re.MULTILINE)
            if part
        ]
        assert any(one["Pid"] == "1" for one in processes), name
        for process in processes:
            assert set(process["Uid"].split()) == set(process["Gid"].split()) == {USER_ID}, (name, process)
            assert set(process["Groups"].split()) <= {USER_ID}, (name, process)
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(process[kind], 16) == 0, (name, kind, process)
            assert process["NoNewPrivs"] == "1", (name, process)
            assert process["Seccomp"] == "2", (name, process)


def test_nothing_but_what_is_meant_to_be_written_can_be(each: dict[str, Container]) -> None:
    write = "for f in / /etc /usr/bin /var/tmp /app /opt; do [ -d $f ] && (: > $f/probe) 2>&1; done; true"
    for name, one in each.items():
        lines = shell(one, f"LC_ALL=C; export LC_ALL; {write}").splitlines()
        assert len(lines) >= 5, (name, lines)
        assert all("Read-only file system" in line for line in lines), (name, lines)
        if one.attrs["HostConfig"].get("Tmpfs"):
            assert "written" in shell(one, "echo written > /tmp/probe && cat /tmp/probe && rm /tmp/probe")
        assert writable(one) == {f"/state/{folder}" for folder in MOUNTED.get(name, ())}, name


def writable(container: Container) -> set[str]:
    """Where something is mounted that can be written and is no memory and none of the kernel's own."""
    found = set()
    for line in shell(container, "cat /proc/self/mounts").splitlines():
        _, place, kind, options, *_ = line.split()
        kernel = kind in {"proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts", "tmpfs"}
        if not kernel and "rw" in options.split(","):
            found.add(place)
    return found


def own_secrets(name: str) -> set[str]:
    """The files that a container has in /secrets."""
    if name == "controller":
        return {"consul.token"}
    if name == "consul-tokens":
        known = {"master", "agent", "controller", "operator", *(one.name for one in FLEET)}
        return {f"consul/{each}.token" for each in known}
    spec = next((one for one in FLEET if one.name == name), None)
    if spec is None:
        return set()
    more = {"auth": {"clients.json", "keys.kek"}, "notifications": {"vapid.key"}}.get(name, set())
    return (
        {"consul.token", "client.secret", "redis.password"}
        | ({"database.url", "events.url"} if spec.database else set())
        | more
    )


def test_a_container_has_its_own_secrets_and_they_are_its_own_alone(each: dict[str, Container]) -> None:
    for name, one in each.items():
        found = inside.entries(one, "/secrets", "/state")
        files = [entry for entry in found if entry.kind != "directory"]
        assert {e.path for e in files if e.path.startswith("/secrets/")} == {
            f"/secrets/{file}" for file in own_secrets(name)
        }, name
        folders = {entry.path.split("/")[2] for entry in files if entry.path.startswith("/state/")}
        # No mail may have come yet.
        assert folders | {"mail"} == MOUNTED.get(name, set()) | {"mail"}, name
        for entry in found:
            assert str(entry.uid) == USER_ID or entry.path in {"/state", "/state/own"}, (name, entry)
        for entry in files:
            if entry.path.startswith("/secrets/") or "/secrets/" in entry.path:
                assert entry.mode == 0o600, (name, entry)
        # A folder that no other user may enter protects what is in it, whatever the permissions of that are.
        tops = [e for e in found if e.path in {"/secrets", *(f"/state/{folder}" for folder in folders)}]
        assert tops
        assert all(entry.mode & 0o077 == 0 for entry in tops), (name, tops)


def test_a_container_knows_no_secret_of_another(
    containers: ContainerFleet, each: dict[str, Container]
) -> None:
    secrets = inside.vault(containers)
    assert {path.partition("/")[0] for path in secrets} >= {
        "consul",
        "redis",
        "postgres",
        "services",
        "auth.kek",
    }
    for name, one in each.items():
        read = "find /secrets /state -type f ! -path '*/data/*' -size -1024k -exec cat {} + 2>/dev/null; true"
        known = inside.found_in(secrets, shell(one, read))
        own = SERVERS_KNOW.get(name, rf"\w+/{re.escape(name)}\.\w+$")
        own += "|auth.kek" if name == "auth" else ""
        assert known <= {path for path in secrets if re.match(own, path)}, name
        # Redis has digests of its users' passwords, HAProxy and the mail server nothing.
        assert known or name in {"haproxy", "mail", "redis-cache", "redis-state"}, (
            f"{name}: nothing could be found"
        )


def test_nothing_that_docker_tells_has_a_secret_in_it(containers: ContainerFleet) -> None:
    secrets = inside.vault(containers)
    label = f"com.docker.compose.project={containers.project}"
    everything = containers.docker.containers.list(all=True, filters={"label": label})
    assert {one.labels[SERVICE] for one in everything} >= {
        "init",
        "databases",
        "edge-init",
        "users",
        "consul",
    }
    said = 0
    for one in everything:
        name = one.labels[SERVICE]
        assert not inside.found_in(secrets, json.dumps(one.attrs)), name
        log = one.logs().decode(errors="replace")
        said += bool(log)
        assert not inside.found_in(secrets, log), name
    assert said > 10, "too few containers answered"
    image = containers.docker.images.get(one_of_each(containers)["users"].attrs["Config"]["Image"])
    assert not inside.found_in(secrets, json.dumps([image.attrs, image.history()]))


# -- networks


@pytest.fixture
def stores(containers: ContainerFleet) -> dict[str, list[Place]]:
    """Store → where it would be found, if there were a way: its address and its name."""
    found = {}
    for name, (port, network, _) in STORES.items():
        address = containers.address(containers.container(name), network)
        assert address
        found[name] = [(address, port), (name, port)]
    return found


def test_a_store_is_reached_by_its_users_and_by_no_other_container(
    containers: ContainerFleet, each: dict[str, Container], stores: dict[str, list[Place]]
) -> None:
    reached = {}
    all_places = [place for places in stores.values() for place in places]
    for name, answers in inside.reach_from_each(containers, each, all_places).items():
        one = each[name]
        own = {store for store, (*_, variable) in STORES.items() if variable in inside.environment(one)}
        reached[name] = own | ({name} & set(STORES))
        for store, places in stores.items():
            if store in reached[name]:
                assert [answers[place] for place in places] == ["open", "open"], (name, answers)
            else:
                assert [answers[place] for place in places] == ["no answer", "no such name"], (name, answers)
    assert reached["auth"] == set(STORES)
    assert reached["products"] == {"redis-cache", "postgres"}
    assert reached["gateway-ai"] == {"redis-cache"}
    assert not reached["haproxy"] | reached["controller"] | reached["consul"] | reached["consul-tokens"]


@pytest.fixture
def elsewhere(containers: ContainerFleet) -> Iterator[Container]:
    """Another machine: a container that is not on any of the stack's networks, and listens at port 8000."""
    network = containers.docker.networks.create(f"{containers.project}-elsewhere")
    image = containers.containers("users")[0].attrs["Config"]["Image"]
    try:
        serve = ["python", "-m", "http.server", "8000", "--directory", "/tmp"]
        one = containers.docker.containers.run(
            image, serve, detach=True, network=network.name, init=True, labels=inside.FOREIGN
        )
        try:
            eventually(lambda: reach(containers, one, [("127.0.0.1", 8000)])["127.0.0.1", 8000] == "open", 10)
            one.reload()
            yield one
        finally:
            one.remove(force=True)
    finally:
        network.remove()


def its_network(container: Container) -> dict[str, str]:
    (found,) = container.attrs["NetworkSettings"]["Networks"].values()
    return dict(found)


def test_no_way_leads_out(
    containers: ContainerFleet, each: dict[str, Container], elsewhere: Container
) -> None:
    there = (its_network(elsewhere)["IPAddress"], 8000)
    assert reach(containers, elsewhere, [there])[there] == "open", "the address does not answer at all"
    for name, answers in inside.reach_from_each(containers, each, [there]).items():
        assert answers[there] == "no answer", name
        if name not in {"haproxy", "consul"}:
            networks = each[name].attrs["NetworkSettings"]["Networks"]
            assert networks
            assert all(containers.docker.networks.get(net).attrs["Internal"] for net in networks), name
    for name in ("public", "console"):
        network = containers.docker.networks.get(f"{containers.project}_{name}")
        assert network.attrs["Options"]["com.docker.network.bridge.enable_ip_masquerade"] == "false"


def test_another_machine_gets_an_answer_from_the_edge_alone(
    containers: ContainerFleet, each: dict[str, Container], elsewhere: Container
) -> None:
    addresses = {
        network["IPAddress"]
        for one in inside.running(containers)
        for network in one.attrs["NetworkSettings"]["Networks"].values()
    }
    assert len(addresses) > len(each)
    machine = its_network(elsewhere)["Gateway"]
    published = [containers.edge_port, containers.edge_https_port]
    guarded = [containers.stats_port, int(containers.environment["CONSUL_HTTP_PORT"])]
    answers = reach(containers, elsewhere, [(machine, port) for port in published + guarded])
    assert [answers[machine, port] for port in published] == ["open", "open"], answers
    assert all(answers[machine, port] != "open" for port in guarded), answers
    direct = reach(containers, elsewhere, [(a, port) for a in sorted(addresses) for port in LISTENING])
    assert set(direct.values()) == {"no answer"}, {k: v for k, v in direct.items() if v != "no answer"}
