"""The stack's commands on the session's stack: status, faults, scale, end. Each test leaves it serving."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from redis import Redis
from rich.console import Console

from stack import http, report, views
from stack.__main__ import main
from stack.errors import BadRequest, NotRunning, PortInUse, StackError
from stack.fleet import FLEET
from stack.run import processes
from stack.run.api import INFRASTRUCTURE, Stack
from stack.settings import REPO, StackSettings
from tests.support.commands import run_here
from tests.support.eventually import eventually, time_scale
from tests.support.processor import alone_s, busy_s, used_s

pytestmark = pytest.mark.needs_stack

# A start with everything installed serves within this; the issue's own bound.
START_WITHIN_S = 20
STARTS_S: list[float] = []


def start(stack: Stack) -> None:
    began, busy = time.monotonic(), busy_s()
    assert stack.up() is True
    own = used_s(one.pid for one in processes.of_stack(stack.settings.var))
    STARTS_S.append(alone_s(time.monotonic() - began, busy_s() - busy, own))


def edge(stack: Stack, path: str) -> requests.Response:
    return http.call(stack.settings.edge_url.removeprefix("http://"), "GET", path)


def environment(stack: Stack) -> dict[str, str]:
    return {**os.environ, "BREAKWATER_VAR": str(stack.settings.var), "PYTHONPATH": str(REPO)}


def command(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    """What starts nothing by itself, in this process."""
    return run_here(main, *words, env=environment(stack), cwd=REPO)


def apart(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    argv = [sys.executable, "-m", "stack", *words]
    return subprocess.run(argv, env=environment(stack), capture_output=True, text=True, timeout=120)


def ids(stack: Stack, service: str) -> list[str]:
    return [one.id for one in stack.instances(service)]


def pids(stack: Stack, *, but: str = "") -> list[tuple[str, int]]:
    """Of every instance, but for one service's."""
    return [(one.id, one.pid) for one in stack.instances() if one.service != but]


def test_gateways_of_every_domain_answer_through_the_edge(stack: Stack) -> None:
    for domain in ("identity", "business", "ai"):
        name = f"gateway-{domain}"
        assert edge(stack, f"/api/gateway/{domain}").headers["x-served-by"] in ids(stack, name)
        assert len(ids(stack, name)) == 2
    assert {len(ids(stack, name)) for name in ("auth", "posts", "products")} == {2}
    assert len(ids(stack, "users")) == 3


def test_up_on_a_running_stack_changes_nothing(stack: Stack) -> None:
    before = pids(stack)
    assert Stack(stack.settings).up() is False
    assert pids(stack) == before


def test_another_start_elsewhere_names_the_holder_of_the_port(stack: Stack) -> None:
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        other = Stack(StackSettings.isolated(Path(folder), edge_http_port=stack.settings.edge_http_port))
        with pytest.raises(PortInUse, match="EDGE_HTTP_PORT.*haproxy"):
            other.up()
        assert processes.of_stack(other.settings.var) == []


@pytest.mark.long
def test_two_stacks_run_side_by_side(stack: Stack) -> None:
    with tempfile.TemporaryDirectory(prefix="stack-", ignore_cleanup_errors=True) as folder:
        products = [spec for spec in FLEET if spec.name == "products"]
        other = Stack(StackSettings.isolated(Path(folder)), fleet=products, counts={"products": 1})
        try:
            other.up()
            assert edge(other, "/api/products").headers["x-served-by"] == "products-1"
            assert edge(other, "/api/posts").status_code == 404
        finally:
            other.down()
        assert processes.of_stack(other.settings.var) == []
    assert edge(stack, "/api/posts").status_code == 200


def test_only_the_edge_could_listen_beyond_loopback(stack: Stack) -> None:
    inodes = {
        str(link.readlink())
        for one in processes.of_stack(stack.settings.var)
        for link in Path(f"/proc/{one.pid}/fd").iterdir()
        if link.is_symlink()
    }
    tables = [
        *Path("/proc/net/tcp").read_text().splitlines()[1:],
        *Path("/proc/net/tcp6").read_text().splitlines()[1:],
    ]
    ours = [
        fields for line in tables if f"socket:[{(fields := line.split())[9]}]" in inodes and fields[3] == "0A"
    ]
    assert len(ours) >= len(stack.settings.fixed_ports) - 1 + len(stack.instances())
    # 127.0.0.1, as gRPC's sockets have it too, and ::1.
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert {fields[1].split(":")[0] for fields in ours} <= loopback


def test_secrets_are_private(stack: Stack) -> None:
    files = [path for path in stack.settings.secrets_dir.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    for folder in ("secrets", "data", "redis-state"):
        assert (stack.settings.var / folder).stat().st_mode & 0o077 == 0
    assert (stack.settings.run_dir / "supervisor.sock").stat().st_mode & 0o077 == 0


def test_killed_instance_comes_back_with_its_port(stack: Stack) -> None:
    before = next(one for one in stack.instances("users") if one.number == 1)
    running = processes.tree(before.pid)
    done = command(stack, "kill", "--service", "users", "--number", "1")
    assert f"users-1: killed (pid {before.pid})" in done.stdout
    assert processes.wait_gone(running, 2) == []
    stack.wait_serving(30)
    after = next(one for one in stack.instances("users") if one.number == 1)
    assert after.pid != before.pid
    assert after.port == before.port


def test_stopped_instances_leave_consul_and_the_edge_and_come_back(stack: Stack) -> None:
    assert "posts-2" in command(stack, "stop", "--service", "posts", "--number", "1").stdout
    assert [one.running for one in stack.instances("posts")] == [True, False]
    token = stack.vault.consul_token("operator")
    assert "posts-2" not in views.consul_view(stack.settings.consul_address, token)
    eventually(
        lambda: not views.is_up(views.edge_view(stack.settings.run_dir / "haproxy.sock").get("posts-2")), 5
    )
    assert edge(stack, "/api/posts").headers["x-served-by"] == "posts-1"
    assert "posts-2" in command(stack, "start", "--service", "posts").stdout
    assert all(one.running for one in stack.instances("posts"))


@pytest.mark.long
def test_gateways_are_scaled_up_and_down_again_like_any_service(stack: Stack) -> None:
    others = pids(stack, but="gateway-ai")
    group = ("--service", "gateway-ai", "--number")
    assert "added gateway-ai-3" in command(stack, "scale", *group, "3").stdout
    assert len({one.port for one in stack.instances()}) == len(stack.instances())
    served_by: set[str] = set()

    def all_serve() -> bool:
        served_by.add(edge(stack, "/api/gateway/ai").headers["x-served-by"])
        return served_by == set(ids(stack, "gateway-ai"))

    eventually(all_serve, 20)
    assert "removed gateway-ai-3" in command(stack, "scale", *group, "2").stdout
    assert ids(stack, "gateway-ai") == ["gateway-ai-1", "gateway-ai-2"]
    assert pids(stack, but="gateway-ai") == others


def test_status_shows_both_views_of_every_instance(stack: Stack) -> None:
    stack.wait_serving(30)
    text = io.StringIO()
    report.print_status(Console(file=text, width=160), stack)
    shown = text.getvalue()
    for one in stack.instances():
        line = next(line for line in shown.splitlines() if line.startswith(f"{one.id} "))
        assert "passing" in line
        assert " UP " in line
        assert str(one.port) in line
        assert str(one.pid) in line
        assert line.rstrip().endswith("closed")
    assert all(f"{name} running" in shown for name in INFRASTRUCTURE)
    assert f"edge: {stack.settings.edge_url} ready" in shown
    stack.pause("users-2")
    try:
        eventually(lambda: {one.id: one.state for one in stack.instances("users")}["users-2"] == "PAUSED", 5)
    finally:
        stack.resume("users-2")
    stack.wait_serving(30)


def test_status_while_consul_is_away(stack: Stack) -> None:
    stack.crash("consul")
    try:
        done = command(stack, "status")
        assert done.returncode == 0
        assert "Consul: does not answer" in done.stdout
        assert " UP " in done.stdout
    finally:
        stack.start("consul")
    stack.wait_serving(30)


def test_logs_of_one_service(stack: Stack) -> None:
    done = command(stack, "logs", "--service", "gateway-ai", "--lines", "1000")
    assert done.returncode == 0
    assert "gateway-ai-1 " in done.stdout
    assert "instance ready" in done.stdout
    assert "gateway-business-1 ──" not in done.stdout
    assert "there are no logs of 'nobody'" in command(stack, "logs", "--service", "nobody").stderr


def test_plan_of_a_settled_stack(stack: Stack) -> None:
    done = apart(stack, "plan")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("kill", "--service", "nobody"), "there is no service 'nobody'"),
        (("kill", "--service", "users", "--number", "9"), "there is no instance users-9"),
        (("kill", "--service", "users", "--number", "-1"), "there is no instance users--1"),
        (("stop", "--service", "users", "--number", "-1"), "N=-1"),
        (("stop", "--service", "users", "--number", "99"), "there are 3"),
        (("scale", "--service", "users", "--number", "-1"), "cannot run that many"),
        (("scale", "--service", "users", "--number", "100000"), "cannot run that many"),
        (("token", "controller"), "cannot be a service's name"),
        (("token", "../x"), "cannot be a service's name"),
        (("token", "stale"), "cannot be a service's name"),
        (("token", "gateway-shop"), "cannot be a service's name"),
        (("run", "missing.py", "--service", "hello"), "there is no file missing.py"),
    ],
)
def test_bad_input_is_reported_and_changes_nothing(stack: Stack, words: tuple[str, ...], said: str) -> None:
    before = pids(stack)
    done = command(stack, *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert pids(stack) == before


def test_token_for_a_service_of_your_own(stack: Stack) -> None:
    with ThreadPoolExecutor(4) as pool:
        asked = list(pool.map(lambda _: apart(stack, "token", "pears"), range(4)))
    assert [(one.returncode, one.stderr) for one in asked] == [(0, "")] * 4, "of several at once each gets it"
    [name] = {one.stdout.strip() for one in asked}
    file = Path(name)
    assert file.stat().st_mode & 0o777 == 0o600
    headers = {"X-Consul-Token": file.read_text().strip()}
    address, path = stack.settings.consul_address, "/v1/agent/service/"
    for service, status in (("users", 403), ("pears", 200)):
        body = {"Name": service, "ID": "pears-1", "Port": 1}
        assert http.call(address, "PUT", f"{path}register", body=body, headers=headers).status_code == status
    assert http.call(address, "PUT", f"{path}deregister/pears-1", headers=headers).status_code == 200
    # What it may not do there is in test_stack_redis.
    given = stack.environment("pears")
    password = Path(given["REDIS_PASSWORD_FILE"]).read_text().strip()
    for url in (given["REDIS_CACHE_URL"], given["REDIS_STATE_URL"]):
        with Redis.from_url(url, username=given["REDIS_USERNAME"], password=password) as redis:
            redis.set("pears:a", 1)


def test_seed_twice_adds_once(stack: Stack) -> None:
    first = command(stack, "seed")
    assert first.returncode == 0, first.stderr
    assert "4 new people, 6 new products, 3 new posts" in first.stdout
    again = command(stack, "seed")
    assert "0 new people, 0 new products, 0 new posts" in again.stdout
    account = json.loads(stack.vault.admin_file.read_text())
    address = stack.settings.edge_url.removeprefix("http://")
    login = http.call(address, "POST", "/api/auth/login", body=account)
    headers = {"Authorization": f"Bearer {login.json()['access_token']}"}
    users = http.call(address, "GET", "/api/users", headers=headers)
    assert users.status_code == 200
    assert len(users.json()["data"]) >= 4


@pytest.mark.long
def test_killed_supervisord_leaves_no_orphans_and_a_start_mends_it(stack: Stack) -> None:
    ports = {one.id: one.port for one in stack.instances()}
    pid = stack.supervisor.pid()
    assert pid is not None
    running = processes.of_stack(stack.settings.var)
    assert len(running) > 15
    os.kill(pid, signal.SIGKILL)
    # Forty programs that end at once, 8 s on an idle machine of two cores: each has its own to tidy up.
    assert processes.wait_gone(running, 60 * time_scale()) == []
    # A worker that was forked just after that look holds its port until it has noticed that its master is dead.
    eventually(lambda: processes.of_stack(stack.settings.var) == [], 10)
    assert "not running" in command(stack, "status").stderr
    start(stack)
    assert {one.id: one.port for one in stack.instances()} == ports


@pytest.mark.long
def test_down_ends_what_a_killed_supervisord_and_stopped_processes_left(stack: Stack) -> None:
    running = processes.of_stack(stack.settings.var)
    instance = stack.instances("users")[0]
    stack.pause(instance.id)
    pid = stack.supervisor.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert stack.down() > 0
    assert processes.wait_gone(running, 0) == []
    with pytest.raises(NotRunning):
        stack.instances()
    start(stack)


@pytest.mark.long
def test_failed_start_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        broken = Stack(
            StackSettings.isolated(Path(folder)), service_env={"users": {"DATABASE_URL": "nonsense://"}}
        )
        with pytest.raises(StackError, match="users-1"):
            broken.up(within_s=15 * time_scale())
        assert processes.of_stack(broken.settings.var) == []


@pytest.mark.long
def test_down_leaves_no_process(stack: Stack) -> None:
    """Also asserted of the session's stack in the end, whatever the tests did to it: see `ProcessFleet.down`."""
    running = processes.of_stack(stack.settings.var)
    assert stack.down() == len(running)
    assert processes.wait_gone(running, 0) == []
    assert stack.down() == 0
    with pytest.raises((NotRunning, BadRequest)):
        stack.kill("users-1")
    start(stack)


@pytest.mark.long
def test_start_with_all_installed_serves_within_its_bound(stack: Stack) -> None:
    """The fastest of the starts above, each without what others on the machine took meanwhile."""
    assert stack.running()
    assert min(STARTS_S) < START_WITHIN_S * time_scale(), STARTS_S
