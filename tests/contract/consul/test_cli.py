"""`python -m discovery` as a script sees it: output, errors and exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery.__main__ import main
from tests.support.commands import run_here
from tests.support.eventually import eventually
from tests.support.scripted import upstream
from tests.support.servers import ConsulServer, consul, free_port

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server() -> Iterator[ConsulServer]:
    with consul() as started:
        yield started


def registered(server: ConsulServer) -> object:
    return server.call("GET", "/v1/agent/services")


def environment(**variables: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CONSUL_")}
    return clean | variables


def run(server: ConsulServer, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables = environment(CONSUL_HTTP_ADDR=server.address, **variables)
    return run_here(main, *arguments, env=variables, cwd=ROOT)


def test_register_resolve_deregister(server: ConsulServer) -> None:
    done = run(
        server, "register", "foreign", "--port", "7001", "--path", "/api/foreign", "--check", "", "--weight", "7",
        "--meta", "edge-auth=public", "--meta", "team=a",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "foreign-127.0.0.1-7001\n")
    found = run(server, "resolve", "foreign", "--json")
    described = json.loads(found.stdout)
    assert (described["port"], described["weight"], described["state"]) == (7001, 7, "passing")
    assert described["meta"]["edge-auth"] == "public"
    assert described["meta"]["team"] == "a"
    assert run(server, "resolve", "foreign").stdout == "127.0.0.1:7001\n"
    assert run(server, "deregister", "foreign-127.0.0.1-7001").returncode == 0
    gone = run(server, "resolve", "foreign")
    assert (gone.returncode, gone.stdout) == (3, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["register", "foreign!", "--port", "7001"],
        ["register", "foreign", "--port", "0"],
        ["register", "foreign", "--port", "7001", "--path", "/health"],
        ["register", "foreign", "--port", "7001", "--meta", "edge-auth=public"],
        ["register", "foreign", "--port", "7001", "--path", "/x", "--meta", "edge-weight=9"],
        ["register", "foreign", "--port", "7001", "--meta", "novalue"],
        ["register", "foreign", "--port", "7001", "--path", "/x\nprogram evil"],
        ["register", "foreign"],
        ["nonsense"],
    ],
)
def test_wrong_arguments_end_with_2_and_say_why(server: ConsulServer, arguments: list[str]) -> None:
    done = run(server, *arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_consul_that_is_not_there_ends_with_1(server: ConsulServer) -> None:
    nowhere = ConsulServer(free_port(), server.process)
    for arguments in (["resolve", "x"], ["deregister", "x"], ["register", "x", "--port", "1"]):
        done = run(nowhere, *arguments)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr


def test_kept_instance_is_registered_once_it_listens_and_leaves_at_sigterm(server: ConsulServer) -> None:
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "discovery",
            "register",
            "kept",
            "--port",
            str(port),
            "--id",
            "kept-1",
            "--keep",
        ],
        env=environment(CONSUL_HTTP_ADDR=server.address),
        cwd=ROOT,
    )
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        assert "kept-1" not in registered(server)
        with upstream(port=port):
            eventually(lambda: "kept-1" in registered(server), 5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        assert "kept-1" not in registered(server)
    finally:
        process.kill()
        process.wait()


def test_watch_prints_a_line_for_every_change(server: ConsulServer) -> None:
    run(server, "register", "watched", "--port", "7002", "--check", "")
    process = subprocess.Popen(
        [sys.executable, "-m", "discovery", "watch", "watched", "--json"],
        env=environment(CONSUL_HTTP_ADDR=server.address),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert [each["port"] for each in first["instances"]] == [7002]
        run(server, "deregister", "watched-127.0.0.1-7002")
        assert json.loads(process.stdout.readline()) == {"service": "watched", "instances": []}
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def test_token_comes_from_a_file(tmp_path: Path) -> None:
    with consul(acl=True) as guarded:
        refused = run(guarded, "register", "x", "--port", "1")
        assert refused.returncode == 1
        file = tmp_path / "token"
        file.write_text(f"{guarded.token}\n")
        assert run(guarded, "register", "x", "--port", "1", CONSUL_HTTP_TOKEN_FILE=str(file)).returncode == 0
        assert run(guarded, "resolve", "x", CONSUL_HTTP_TOKEN_FILE=str(tmp_path / "none")).returncode == 2
