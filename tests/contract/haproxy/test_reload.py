"""Reloads: hitless, rare, and never with a file that HAProxy refuses."""

from __future__ import annotations

import http.client
import json
import re
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from haproxy.controller.runtime.socket import Runtime, command
from tests.contract.haproxy.rig import Edge, edge
from tests.support.eventually import eventually, time_scale
from tests.support.load import Load, Plan
from tests.support.processor import used_s


@pytest.fixture
def running() -> Iterator[Edge]:
    with edge() as made:
        yield made


def public(path: str) -> dict[str, str]:
    return {"edge-path": path, "edge-auth": "public"}


def worker(running: Edge) -> int:
    return Runtime(running.settings.runtime_socket).info().pid


def test_ten_new_routes_under_load_cost_no_request_and_few_reloads(running: Edge) -> None:
    for name in ("base-1", "base-2"):
        running.instance("base", name, public("/api/base"))
    running.serves("/api/base", {"base-1", "base-2"})
    before = running.reloads()
    began = time.monotonic()
    with Load(Plan(running.settings.edge_http_port, ("/api/base",), rate_per_s=300)) as load:
        for n in range(10):
            running.instance(f"new{n}", f"new{n}-1", public(f"/api/new{n}"))
            time.sleep(0.3)
        for n in range(10):
            running.serves(f"/api/new{n}", {f"new{n}-1"})
        took = time.monotonic() - began
    report = load.report()
    assert not report.failures(), report.failures()[:5]
    assert len(report.answers) > 300
    assert 1 <= running.reloads() - before <= took + 1, "more than one reload a second"


def test_server_added_at_run_time_survives_a_reload_and_a_restart(running: Edge) -> None:
    running.instance("base", "base-1", public("/api/base"))
    running.serves("/api/base", {"base-1"})
    running.instance("base", "base-2", public("/api/base"))
    running.serves("/api/base", {"base-1", "base-2"})
    before, old = running.reloads(), worker(running)
    running.instance("other", "other-1", public("/api/other"))
    running.serves("/api/other", {"other-1"})
    assert running.reloads() == before + 1
    assert worker(running) != old
    assert running.answers("/api/base") == {"base-1", "base-2"}

    running.instance("base", "base-3", public("/api/base"))
    eventually(lambda: "base-3 127" in running.settings.config_path.read_text(), 5)
    running.controller.kill()
    running.haproxy.kill()
    running.start_haproxy()
    assert running.answers("/api/base") == {"base-1", "base-2", "base-3"}


def test_restarted_haproxy_is_noticed_and_brought_in_step(running: Edge) -> None:
    running.instance("base", "base-1", public("/api/base"))
    running.serves("/api/base", {"base-1"})
    running.haproxy.kill()
    running.deregister("base-1")
    running.instance("base", "base-2", public("/api/base"))
    running.start_haproxy()
    running.serves("/api/base", {"base-2"})
    eventually(lambda: set(running.servers("base")) == {"base-2"}, 5)


def test_server_that_is_down_stays_down_over_a_reload(running: Edge) -> None:
    one = running.instance("base", "base-1", public("/api/base"))
    running.instance("base", "base-2", public("/api/base"))
    running.serves("/api/base", {"base-1", "base-2"})
    one.ready = False
    eventually(lambda: not running.servers("base")["base-1"].up, 5)
    old = worker(running)
    seen = one.seen
    running.instance("other", "other-1", public("/api/other"))
    eventually(lambda: worker(running) != old, 5, 0.001)
    assert not running.servers("base")["base-1"].up
    assert running.answers("/api/base") == {"base-2"}
    assert one.seen == seen
    one.ready = True
    running.serves("/api/base", {"base-1", "base-2"})


def test_weight_and_drain_hold_over_a_reload(running: Edge) -> None:
    running.instance("base", "base-1", public("/api/base") | {"edge-weight": "9"})
    running.instance("base", "base-2", public("/api/base"))
    running.serves("/api/base", {"base-1", "base-2"})
    running.deregister("base-2")
    eventually(lambda: set(running.servers("base")) == {"base-1"}, 5)
    running.instance("other", "other-1", public("/api/other"))
    running.serves("/api/other", {"other-1"})
    assert running.answers("/api/base") == {"base-1"}
    assert running.servers("base")["base-1"].weight == 9


@pytest.fixture
def switched() -> Iterator[tuple[Edge, Path]]:
    """An edge with `haproxy -c` in the test's hand: what the file holds is run by a shell before it."""
    with edge(start=False, EDGE_DRAIN_S="30") as running:
        binary, switch = running.folder / "haproxy-check", running.folder / "switch"
        switch.touch()
        binary.write_text(f'#!/bin/sh\n. {switch}\nexec haproxy "$@"\n')
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
        assert running.controller.env is not None
        running.controller.env["HAPROXY_BINARY"] = str(binary)
        running.start_controller()
        running.instance("base", "base-1", public("/api/base"))
        running.serves("/api/base", {"base-1"})
        yield running, switch


def unready(running: Edge) -> str:
    """What the controller says is not well."""
    connection = http.client.HTTPConnection("127.0.0.1", running.settings.controller_port, timeout=5)
    connection.request("GET", "/health/ready")
    answer = connection.getresponse()
    problems = json.loads(answer.read()).get("problems", {})
    assert (answer.status == 200) == (not problems)
    return str(problems)


def test_file_that_haproxy_refuses_never_replaces_the_one_in_use(switched: tuple[Edge, Path]) -> None:
    running, switch = switched
    eventually(lambda: unready(running) == "{}", 5)
    before, text = worker(running), running.settings.config_path.read_text()
    switch.write_text("echo out of luck >&2; exit 1")
    running.instance("other", "other-1", public("/api/other"))
    name = 'breakwater_controller_reload_failures_total{reason="routes"}'
    eventually(lambda: running.metric(name) > 1, 10)
    assert running.settings.config_path.read_text() == text
    assert worker(running) == before
    assert running.answers("/api/base") == {"base-1"}
    assert "out of luck" in unready(running)
    assert running.log.count("reload failed") == 1, "the same refusal is told once"
    assert running.verdict("other")["state"] == "pending"
    # What needs no reload goes on.
    running.instance("base", "base-2", public("/api/base"))
    running.serves("/api/base", {"base-1", "base-2"})
    # Nothing changes but what was in the way.
    switch.write_text("")
    running.serves("/api/other", {"other-1"}, 12)
    eventually(lambda: running.verdict("other")["state"] == "accepted", 5)
    assert unready(running) == "{}"
    assert not list(running.settings.edge_dir.glob(".haproxy.cfg.*")), "temporary files left"


def test_prefix_pinned_away_while_its_last_request_runs_costs_no_processor(
    switched: tuple[Edge, Path],
) -> None:
    running, switch = switched
    running.programs[0].slow_s = 20.0
    pool = ThreadPoolExecutor(1)
    pool.submit(running.get, "/api/base/slow", 30.0)
    eventually(lambda: running.servers("base")["base-1"].sessions > 0, 5)
    running.deregister("base-1")
    eventually(lambda: running.servers("base")["base-1"].mode == "drain", 5)
    switch.write_text("exit 1")
    running.put("edge/policy/owners", {"/api/base": "heir"})
    eventually(lambda: "reload failed" in running.log, 5)
    used = used_s([running.controller.pid])
    time.sleep(2)
    assert used_s([running.controller.pid]) - used < 1
    running.controller.stop()
    running.haproxy.kill()
    pool.shutdown()


def test_file_that_no_worker_comes_up_with_is_not_left_in_place(switched: tuple[Edge, Path]) -> None:
    running, switch = switched
    old, certificate = worker(running), running.settings.certificate.read_bytes()
    switch.write_text("exit 0")
    running.settings.certificate.write_bytes(b"no certificate")
    running.instance("other", "other-1", public("/api/other"))
    # The second time, and so long after the change that the file would follow it.
    name = 'breakwater_controller_reload_failures_total{reason="routes"}'
    eventually(lambda: running.metric(name) >= 2, 15)
    running.controller.stop(30)
    text = running.settings.config_path.read_text()
    assert "/api/base" in text
    assert "/api/other" not in text
    assert worker(running) == old
    running.settings.certificate.write_bytes(certificate)
    running.start_controller()
    running.serves("/api/other", {"other-1"})
    assert running.answers("/api/base") == {"base-1"}


def test_instances_change_while_a_configuration_is_checked(switched: tuple[Edge, Path]) -> None:
    running, switch = switched
    running.reloads()
    checking, go = running.folder / "checking", running.folder / "go"
    switch.write_text(f"touch {checking}; while [ ! -e {go} ]; do sleep 0.05; done")
    running.instance("other", "other-1", public("/api/other"))
    eventually(checking.exists, 5)
    old = worker(running)
    running.instance("base", "base-2", public("/api/base"))
    running.serves("/api/base", {"base-1", "base-2"}, 2)
    running.deregister("base-1")
    running.serves("/api/base", {"base-2"}, 2)
    assert worker(running) == old
    # The new worker's file was made before these changes.
    go.touch()
    eventually(lambda: worker(running) != old, 10)
    running.serves("/api/other", {"other-1"})
    eventually(lambda: set(running.servers("base")) == {"base-2"}, 3)
    assert running.answers("/api/base") == {"base-2"}


def test_worker_that_cannot_start_leaves_the_old_one_and_its_file(running: Edge) -> None:
    running.instance("base", "base-1", public("/api/base"))
    running.serves("/api/base", {"base-1"})
    text, old = running.settings.config_path.read_text(), worker(running)
    # `haproxy -c` does not bind: a socket path that cannot be made passes it, and then fails.
    broken = re.sub(r"(stats socket )\S+", r"\1/nonexistent/x.sock", text)
    running.controller.stop()
    running.settings.config_path.write_text(broken)
    with (
        Runtime(running.settings.master_socket).session() as session,
        pytest.raises(Exception, match="closed"),
    ):
        session.send(command("reload"))
    eventually(lambda: "ReloadFailed" in _prompt(running), 5)
    assert worker(running) == old
    running.settings.config_path.write_text(text)
    running.start_controller()
    running.instance("other", "other-1", public("/api/other"))
    running.serves("/api/other", {"other-1"})


def _prompt(running: Edge) -> str:
    import socket

    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        connection.connect(str(running.settings.master_socket))
        connection.sendall(b"prompt\n")
        return connection.recv(100).decode()


def test_first_answer_and_last_answer_come_within_milliseconds(running: Edge) -> None:
    """The figure itself is `make bench` (d); this is its floor: nothing in the way is polled."""
    base = running.instance("base", "base-1", public("/api/base"))
    running.serves("/api/base", {"base-1"})
    running.reloads()
    for n in range(20):
        running.register("base", f"extra-{n}", base.port, public("/api/base"))
        eventually(lambda n=n: f"extra-{n}" in running.servers("base"), 2, 0.002)
        running.deregister(f"extra-{n}")
        eventually(lambda n=n: f"extra-{n}" not in running.servers("base"), 2, 0.002)
    within = "0.025" if time_scale() == 1 else "0.1"
    bucket = running.metric(f'breakwater_controller_change_to_applied_seconds_bucket{{le="{within}"}}')
    total = running.metric("breakwater_controller_change_to_applied_seconds_count")
    assert bucket >= total - 4, "the two routes of the start, and at most two stragglers"
