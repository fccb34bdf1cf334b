"""The whole stack on free ports: start, faults, scale, end. Each test leaves it serving."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from redis import Redis
from redis.exceptions import NoPermissionError
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

# A start with everything installed serves within this; the issue's own bound.
START_WITHIN_S = 20
STARTS_S: list[float] = []


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    # Not pytest's folder: Unix socket paths end at 107 bytes.
    with tempfile.TemporaryDirectory(prefix="stack-", ignore_cleanup_errors=True) as folder:
        one = Stack(StackSettings.isolated(Path(folder)))
        try:
            start(one)
            yield one
        finally:
            one.down()


def start(stack: Stack) -> None:
    began, busy = time.monotonic(), busy_s()
    assert stack.up() is True
    own = used_s(one.pid for one in processes.of_stack(stack.settings.var))
    STARTS_S.append(alone_s(time.monotonic() - began, busy_s() - busy, own))


def edge(stack: Stack, path: str) -> requests.Response:
    return http.call(stack.settings.edge_url.removeprefix("http://"), "GET", path)


def command(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BREAKWATER_VAR": str(stack.settings.var), "PYTHONPATH": str(REPO)}
    return subprocess.run(
        [sys.executable, "-m", "stack", *words], env=environment, capture_output=True, text=True, timeout=90
    )


def ids(stack: Stack, service: str) -> list[str]:
    return [one.id for one in stack.instances(service)]


def test_every_service_answers_through_the_edge(stack: Stack) -> None:
    assert edge(stack, "/api/products").headers["x-served-by"] in ids(stack, "products")
    assert edge(stack, "/api/posts").headers["x-served-by"] in ids(stack, "posts")
    assert edge(stack, "/api/auth/.well-known/jwks.json").headers["x-served-by"] in ids(stack, "auth")
    assert edge(stack, "/api/users").status_code == 401
    for domain in ("identity", "business", "ai"):
        name = f"gateway-{domain}"
        assert edge(stack, f"/api/gateway/{domain}").headers["x-served-by"] in ids(stack, name)
        assert len(ids(stack, name)) == 2
    assert {len(ids(stack, name)) for name in ("auth", "posts", "products")} == {2}
    assert len(ids(stack, "users")) == 3


def test_up_on_a_running_stack_changes_nothing(stack: Stack) -> None:
    before = [(one.id, one.pid) for one in stack.instances()]
    assert Stack(stack.settings).up() is False
    assert [(one.id, one.pid) for one in stack.instances()] == before


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
    assert {fields[1].split(":")[0] for fields in ours} <= {"0100007F", "00000000000000000000000001000000"}


def test_secrets_are_private(stack: Stack) -> None:
    files = [path for path in stack.settings.secrets_dir.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    for folder in ("secrets", "data", "redis-state"):
        assert (stack.settings.var / folder).stat().st_mode & 0o077 == 0
    assert (stack.settings.run_dir / "supervisor.sock").stat().st_mode & 0o077 == 0


def test_redis_wants_its_password(stack: Stack) -> None:
    with subprocess.Popen(
        ["redis-cli", "-p", str(stack.settings.redis_state_port), "ping"], stdout=subprocess.PIPE, text=True
    ) as popen:
        assert "NOAUTH" in popen.communicate(timeout=10)[0]


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


def test_gateways_are_killed_stopped_started_and_read_like_any_service(stack: Stack) -> None:
    others = [(one.id, one.pid) for one in stack.instances() if one.service != "gateway-ai"]
    group = ("--service", "gateway-ai")
    assert "gateway-ai-1: killed" in command(stack, "kill", *group).stdout
    assert "gateway-ai-2" in command(stack, "stop", *group, "--number", "1").stdout
    assert "gateway-ai-2" in command(stack, "start", *group).stdout
    assert "added gateway-ai-3" in command(stack, "scale", *group, "--number", "3").stdout
    assert "removed gateway-ai-3" in command(stack, "scale", *group, "--number", "2").stdout
    logs = command(stack, "logs", *group, "--lines", "1000").stdout
    assert "gateway-ai-1 " in logs
    assert "instance ready" in logs
    assert "gateway-business" not in logs
    assert [(one.id, one.pid) for one in stack.instances() if one.service != "gateway-ai"] == others


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


def test_scale_up_and_down_again(stack: Stack) -> None:
    others = [one.pid for one in stack.instances("posts")]
    done = command(stack, "scale", "--service", "products", "--number", "4")
    assert "products-3, products-4" in done.stdout
    assert len({one.port for one in stack.instances()}) == len(stack.instances())
    eventually(
        lambda: (
            {edge(stack, f"/api/products?limit={n}").headers["x-served-by"] for n in range(1, 41)}
            == set(ids(stack, "products"))
        ),
        10,
    )
    assert (
        "removed products-3, products-4"
        in command(stack, "scale", "--service", "products", "--number", "2").stdout
    )
    assert ids(stack, "products") == ["products-1", "products-2"]
    assert [one.pid for one in stack.instances("posts")] == others


def test_paused_instance_is_shown_and_resumes(stack: Stack) -> None:
    stack.pause("users-2")
    try:
        eventually(lambda: {one.id: one.state for one in stack.instances("users")}["users-2"] == "PAUSED", 5)
    finally:
        stack.resume("users-2")
    stack.wait_serving(30)


def test_crashed_server_stays_away_until_started(stack: Stack) -> None:
    stack.crash("redis-cache")
    time.sleep(1.5)  # longer than supervisord takes to start again what it did not stop
    assert stack.pid("redis-cache") == 0
    stack.start("redis-cache")
    assert stack.pid("redis-cache") > 0


def test_empty_consul_is_filled_again(stack: Stack) -> None:
    before = [(one.id, one.pid) for one in stack.instances()]
    stack.restart_consul(empty=True)
    stack.wait_serving(60)
    assert [(one.id, one.pid) for one in stack.instances()] == before


def test_status_shows_both_views_of_every_instance(stack: Stack) -> None:
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
    done = command(stack, "logs", "--service", "users", "--lines", "5")
    assert done.returncode == 0
    assert "users-1" in done.stdout
    assert "posts-1 " not in done.stdout
    assert "there are no logs of 'nobody'" in command(stack, "logs", "--service", "nobody").stderr


def test_plan_of_a_settled_stack(stack: Stack) -> None:
    done = command(stack, "plan")
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
        (("token", "snapshot"), "cannot be a service's name"),
        (("token", "gateway-shop"), "cannot be a service's name"),
        (("run", "missing.py", "--service", "hello"), "there is no file missing.py"),
    ],
)
def test_bad_input_is_reported_and_changes_nothing(stack: Stack, words: tuple[str, ...], said: str) -> None:
    before = [(one.id, one.pid) for one in stack.instances()]
    variables = {**os.environ, "BREAKWATER_VAR": str(stack.settings.var)}
    done = run_here(main, *words, env=variables, cwd=REPO)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [(one.id, one.pid) for one in stack.instances()] == before


def test_token_for_a_service_of_your_own(stack: Stack) -> None:
    with ThreadPoolExecutor(4) as pool:
        asked = list(pool.map(lambda _: command(stack, "token", "hello"), range(4)))
    assert [(one.returncode, one.stderr) for one in asked] == [(0, "")] * 4, "of several at once each gets it"
    [name] = {one.stdout.strip() for one in asked}
    file = Path(name)
    assert file.stat().st_mode & 0o777 == 0o600
    headers = {"X-Consul-Token": file.read_text().strip()}
    body = {"Name": "hello", "ID": "hello-1", "Port": 1}
    address = stack.settings.consul_address
    path = "/v1/agent/service/register"
    assert http.call(address, "PUT", path, body={**body, "Name": "users"}, headers=headers).status_code == 403
    assert http.call(address, "PUT", path, body=body, headers=headers).status_code == 200
    assert (
        http.call(address, "PUT", "/v1/agent/service/deregister/hello-1", headers=headers).status_code == 200
    )
    environment = stack.environment("hello")
    for url in (environment["REDIS_CACHE_URL"], environment["REDIS_STATE_URL"]):
        password = Path(environment["REDIS_PASSWORD_FILE"]).read_text().strip()
        with Redis.from_url(url, username=environment["REDIS_USERNAME"], password=password) as redis:
            redis.set("hello:a", 1)
            with pytest.raises(NoPermissionError):
                redis.set("users:a", 1)


def test_seed_twice_adds_once(stack: Stack) -> None:
    first = command(stack, "seed")
    assert first.returncode == 0, first.stderr
    assert "4 new people, 6 new products, 3 new posts" in first.stdout
    again = command(stack, "seed")
    assert "0 new people, 0 new products, 0 new posts" in again.stdout
    account = json.loads(stack.vault.admin_file.read_text())
    login = http.call(
        stack.settings.edge_url.removeprefix("http://"), "POST", "/api/auth/login", body=account
    )
    token = login.json()["access_token"]
    users = http.call(
        stack.settings.edge_url.removeprefix("http://"),
        "GET",
        "/api/users",
        headers={"Authorization": f"Bearer {token}"},
    )
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
def test_failed_start_leaves_nothing(stack: Stack) -> None:
    with tempfile.TemporaryDirectory(prefix="stack-") as folder:
        broken = Stack(
            StackSettings.isolated(Path(folder)), service_env={"users": {"DATABASE_URL": "nonsense://"}}
        )
        with pytest.raises(StackError, match="users-1"):
            broken.up(within_s=15 * time_scale())
        assert processes.of_stack(broken.settings.var) == []


def test_down_leaves_no_process(stack: Stack) -> None:
    running = processes.of_stack(stack.settings.var)
    assert stack.down() == len(running)
    assert processes.wait_gone(running, 0) == []
    assert stack.down() == 0
    with pytest.raises((NotRunning, BadRequest)):
        stack.kill("users-1")
    start(stack)


def test_start_with_all_installed_serves_within_its_bound(stack: Stack) -> None:
    """The fastest of the starts above, each without what others on the machine took meanwhile."""
    assert stack.running()
    assert min(STARTS_S) < START_WITHIN_S * time_scale(), STARTS_S
