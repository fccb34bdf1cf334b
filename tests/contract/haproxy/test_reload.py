"""Reloads: hitless, rare, and never with a file that HAProxy refuses."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterator

import pytest

from haproxy.controller.runtime import Runtime, command
from tests.contract.haproxy.rig import Edge, edge
from tests.support.eventually import eventually
from tests.support.load import Load, Plan


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
    running.instance("other", "other-1", public("/api/other"))
    running.serves("/api/other", {"other-1"})
    assert running.answers("/api/base") == {"base-1"}
    assert running.servers("base")["base-1"].weight == 9


def test_file_that_haproxy_refuses_never_replaces_the_one_in_use() -> None:
    with edge(start=False) as running:
        # HAProxy's own check, with a switch that makes it refuse everything.
        binary, switch = running.folder / "haproxy-check", running.folder / "refuse"
        binary.write_text(f'#!/bin/sh\n[ -e {switch} ] && {{ echo "no" >&2; exit 1; }}\nexec haproxy "$@"\n')
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
        assert running.controller.env is not None
        running.controller.env["HAPROXY_BINARY"] = str(binary)
        running.start_controller()
        running.instance("base", "base-1", public("/api/base"))
        running.serves("/api/base", {"base-1"})
        before, text = worker(running), running.settings.config_path.read_text()
        switch.touch()
        running.instance("other", "other-1", public("/api/other"))
        name = 'breakwater_controller_reload_failures_total{reason="routes"}'
        eventually(lambda: running.metric(name) == 1, 5)
        assert running.settings.config_path.read_text() == text
        assert worker(running) == before
        assert running.answers("/api/base") == {"base-1"}
        # What needs no reload goes on; the next change of routes tries again.
        running.instance("base", "base-2", public("/api/base"))
        running.serves("/api/base", {"base-1", "base-2"})
        switch.unlink()
        running.instance("third", "third-1", public("/api/third"))
        running.serves("/api/third", {"third-1"})
        running.serves("/api/other", {"other-1"})
        assert not list(running.settings.edge_dir.glob(".haproxy.cfg.*")), "temporary files left"


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
    bucket = running.metric('breakwater_controller_change_to_applied_seconds_bucket{le="0.025"}')
    total = running.metric("breakwater_controller_change_to_applied_seconds_count")
    assert bucket >= total - 4, "the two routes of the start, and at most two stragglers"
