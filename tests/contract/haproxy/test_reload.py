"""Reloads: hitless, rare, never with a file that HAProxy refuses, and without a line of the log lost."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from haproxy.controller.runtime.socket import Runtime
from stack import http
from tests.contract.haproxy.rig import Edge, edge, fresh, public
from tests.support.eventually import eventually, time_scale
from tests.support.load import Load, Plan
from tests.support.processor import used_s


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """An edge with `haproxy -c` in the tests' hands: what the file `switch` holds is run by a shell before it."""
    requests = tmp_path_factory.mktemp("log") / "requests.log"
    with edge(start=False, EDGE_LOG_FILE=str(requests)) as made:
        binary = made.folder / "haproxy-check"
        switch(made).touch()
        binary.write_text(f'#!/bin/sh\n. {switch(made)}\nexec haproxy "$@"\n')
        binary.chmod(0o755)
        assert made.controller.env is not None
        made.controller.env["HAPROXY_BINARY"] = str(binary)
        made.start_controller()
        yield made


@pytest.fixture
def running(shared: Edge) -> Edge:
    switch(shared).write_text("")
    shared.restore()
    return shared


def switch(running: Edge) -> Path:
    return running.folder / "switch"


def worker(running: Edge) -> int:
    return Runtime(running.settings.runtime_socket).info().pid


def failures(running: Edge) -> float:
    return running.metric('breakwater_controller_reload_failures_total{reason="routes"}')


def test_new_routes_under_load_cost_no_request_and_few_reloads(running: Edge) -> None:
    base, new = fresh("base"), [fresh("new") for _ in range(5)]
    running.fleet(base)
    before = running.reloads()
    began = time.monotonic()
    with Load(Plan(running.settings.edge_http_port, (f"/api/{base}",), rate_per_s=200)) as load:
        for service in new:
            running.instance(service, f"{service}-1")
            time.sleep(0.3)
        for service in new:
            running.serves(f"/api/{service}", {f"{service}-1"})
        took = time.monotonic() - began
    report = load.report()
    assert not report.failures(), report.failures()[:5]
    assert len(report.answers) > 100
    assert 1 <= running.reloads() - before <= took + 1, "more than one reload a second"


def test_each_request_is_logged_once_across_a_reload_and_a_dead_controller(running: Edge) -> None:
    base, other, file = fresh("base"), fresh("other"), running.settings.edge_log_file
    assert file is not None
    asked = [f"/api/{base}/{number}" for number in range(90)]

    def logged() -> Counter[str]:
        lines = [line for line in file.read_text().splitlines() if line.startswith("{") and base in line]
        return Counter(json.loads(line)["path"] for line in lines)

    running.fleet(base, 1)
    for path in asked[:30]:
        running.get(path)
    # What a killed one has not read yet is lost with it.
    eventually(lambda: set(asked[:30]) <= set(logged()), 10, every_s=0.1)
    running.controller.kill()
    for path in asked[30:60]:
        running.get(path)
    running.start_controller()
    before = running.reloads()
    running.instance(other, f"{other}-1")
    for path in asked[60:]:
        running.get(path)
    running.serves(f"/api/{other}", {f"{other}-1"})
    assert running.reloads() == before + 1
    eventually(lambda: set(asked) <= set(logged()), 10, every_s=0.1)
    assert {path: logged()[path] for path in asked} == dict.fromkeys(asked, 1)
    assert '"event":"request"' not in running.haproxy.log.read_text()


def test_server_added_at_run_time_survives_a_reload_and_a_restart(running: Edge) -> None:
    base, other = fresh("base"), fresh("other")
    running.fleet(base, 1)
    running.instance(base, f"{base}-2")
    running.serves(f"/api/{base}", {f"{base}-1", f"{base}-2"})
    before, old = running.reloads(), worker(running)
    running.fleet(other, 1)
    assert running.reloads() == before + 1
    assert worker(running) != old
    assert running.answers(f"/api/{base}") == {f"{base}-1", f"{base}-2"}

    running.instance(base, f"{base}-3")
    eventually(lambda: f"{base}-3 127" in running.settings.config_path.read_text(), 5)
    running.controller.kill()
    running.haproxy.kill()
    running.start_haproxy()
    assert running.answers(f"/api/{base}") == {f"{base}-1", f"{base}-2", f"{base}-3"}


def test_restarted_haproxy_is_noticed_and_brought_in_step(running: Edge) -> None:
    base = fresh("base")
    running.fleet(base, 1)
    running.haproxy.kill()
    running.deregister(f"{base}-1")
    running.instance(base, f"{base}-2")
    running.start_haproxy()
    running.serves(f"/api/{base}", {f"{base}-2"})
    eventually(lambda: set(running.servers(base)) == {f"{base}-2"}, 5)


def test_health_weight_and_drain_hold_over_a_reload(running: Edge) -> None:
    base, other = fresh("base"), fresh("other")
    down, *_ = running.fleet(base, 3)
    heavy = public(base, weight="9")
    running.register(base, f"{base}-2", running.programs[-2].port, heavy)
    down.ready = False
    eventually(lambda: not running.servers(base)[down.name].up, 5)
    running.deregister(f"{base}-3")
    eventually(lambda: set(running.servers(base)) == {f"{base}-1", f"{base}-2"}, 5)
    old, seen = worker(running), down.seen
    running.instance(other, f"{other}-1")
    eventually(lambda: worker(running) != old, 5, 0.001)
    assert not running.servers(base)[down.name].up
    assert running.servers(base)[f"{base}-2"].weight == 9
    assert running.answers(f"/api/{base}") == {f"{base}-2"}
    assert down.seen == seen
    down.ready = True
    running.serves(f"/api/{base}", {f"{base}-1", f"{base}-2"}, 10)


def unready(running: Edge) -> str:
    """What the controller says is wrong."""
    answer = http.call(f"127.0.0.1:{running.settings.controller_port}", "GET", "/health/ready")
    problems = answer.json().get("problems", {})
    assert (answer.status_code == 200) == (not problems)
    return str(problems)


def is_well(running: Edge) -> bool:
    problems = unready(running)
    assert problems == "{}"
    return True


def test_file_that_haproxy_refuses_never_replaces_the_one_in_use(running: Edge) -> None:
    base, other = fresh("base"), fresh("other")
    running.fleet(base, 1)
    running.reloads()
    eventually(lambda: is_well(running), 10)
    before, text, failed = worker(running), running.settings.config_path.read_text(), failures(running)
    said = running.log.count("reload failed")
    switch(running).write_text("echo out of luck >&2; exit 1")
    running.instance(other, f"{other}-1")
    eventually(lambda: failures(running) > failed + 1, 10)
    assert running.settings.config_path.read_text() == text
    assert worker(running) == before
    assert running.answers(f"/api/{base}") == {f"{base}-1"}
    assert "out of luck" in unready(running)
    assert running.log.count("reload failed") == said + 1, "the same refusal is logged once"
    assert running.verdict(other)["state"] == "pending"
    # What needs no reload goes on.
    running.instance(base, f"{base}-2")
    running.serves(f"/api/{base}", {f"{base}-1", f"{base}-2"})
    # Nothing changes but what was in the way.
    switch(running).write_text("")
    running.serves(f"/api/{other}", {f"{other}-1"}, 12)
    eventually(lambda: running.verdict(other)["state"] == "accepted", 5)
    assert unready(running) == "{}"
    assert not list(running.settings.edge_dir.glob(".haproxy.cfg.*")), "temporary files left"


def test_prefix_pinned_away_while_its_last_request_runs_costs_no_processor(running: Edge) -> None:
    base = fresh("base")
    (program,) = running.fleet(base, 1)
    program.slow_s = 20.0
    with ThreadPoolExecutor(1) as pool:
        pool.submit(running.get, f"/api/{base}/slow", 30.0)
        eventually(lambda: running.servers(base)[program.name].sessions > 0, 5)
        running.deregister(program.name)
        eventually(lambda: running.servers(base)[program.name].mode == "drain", 5)
        failed = failures(running)
        switch(running).write_text("exit 1")
        running.put("edge/policy/owners", {f"/api/{base}": "heir"})
        eventually(lambda: failures(running) > failed, 5)
        used = used_s([running.controller.pid])
        time.sleep(2)
        assert used_s([running.controller.pid]) - used < 1
        program.close()  # its last request ends
    running.put("edge/policy/owners", {})


def test_file_that_no_worker_comes_up_with_is_not_left_in_place(running: Edge) -> None:
    base, other = fresh("base"), fresh("other")
    running.fleet(base, 1)
    running.reloads()
    old, certificate = worker(running), running.settings.certificate.read_bytes()
    failed = failures(running)
    switch(running).write_text("exit 0")
    running.settings.certificate.write_bytes(b"no certificate")
    running.instance(other, f"{other}-1")
    # The second time, and so long after the change that the file would follow it.
    eventually(lambda: failures(running) >= failed + 2, 15)
    running.controller.stop(30)
    text = running.settings.config_path.read_text()
    assert f"/api/{base}" in text
    assert f"/api/{other}" not in text
    assert worker(running) == old
    running.settings.certificate.write_bytes(certificate)
    running.start_controller()
    running.serves(f"/api/{other}", {f"{other}-1"})
    assert running.answers(f"/api/{base}") == {f"{base}-1"}


def test_instances_change_while_a_configuration_is_checked(running: Edge) -> None:
    base, other = fresh("base"), fresh("other")
    running.fleet(base, 1)
    running.reloads()
    checking, go = running.folder / "checking", running.folder / "go"
    switch(running).write_text(f"touch {checking}; while [ ! -e {go} ]; do sleep 0.05; done")
    running.instance(other, f"{other}-1")
    eventually(checking.exists, 5)
    old = worker(running)
    running.instance(base, f"{base}-2")
    running.serves(f"/api/{base}", {f"{base}-1", f"{base}-2"}, 2)
    running.deregister(f"{base}-1")
    running.serves(f"/api/{base}", {f"{base}-2"}, 2)
    assert worker(running) == old
    # The new worker's file was made before these changes.
    go.touch()
    eventually(lambda: worker(running) != old, 10)
    running.serves(f"/api/{other}", {f"{other}-1"})
    eventually(lambda: set(running.servers(base)) == {f"{base}-2"}, 3)
    assert running.answers(f"/api/{base}") == {f"{base}-2"}


def test_haproxy_that_did_not_answer_for_a_moment_of_a_reload_is_well_after_it(running: Edge) -> None:
    base, other = fresh("base"), fresh("other")
    running.fleet(base, 1)
    running.reloads()
    checking, go = running.folder / "began", running.folder / "go-on"
    switch(running).write_text(f"touch {checking}; while [ ! -e {go} ]; do sleep 0.05; done")
    running.instance(other, f"{other}-1")
    eventually(checking.exists, 5)
    socket = running.settings.runtime_socket
    aside = socket.rename(socket.with_suffix(".aside"))
    eventually(lambda: "does not answer" in unready(running), 5)
    aside.rename(socket)
    go.touch()
    running.serves(f"/api/{other}", {f"{other}-1"})
    eventually(lambda: is_well(running), 5)
    assert running.metric("breakwater_controller_haproxy_up") == 1


def test_first_answer_and_last_answer_come_within_milliseconds(running: Edge) -> None:
    """The figure itself is `make bench` (d); this is its floor: nothing in the way is polled."""
    base = fresh("base")
    (program,) = running.fleet(base, 1)
    running.reloads()
    within = "0.025" if time_scale() == 1 else "0.1"
    samples = [
        f'breakwater_controller_change_to_applied_seconds_bucket{{le="{within}"}}',
        "breakwater_controller_change_to_applied_seconds_count",
    ]
    before = [running.metric(sample) for sample in samples]
    for n in range(10):
        running.register(base, f"extra-{n}", program.port, public(base))
        eventually(lambda n=n: f"extra-{n}" in running.servers(base), 2, 0.002)
        running.deregister(f"extra-{n}")
        eventually(lambda n=n: f"extra-{n}" not in running.servers(base), 2, 0.002)
    bucket, total = (running.metric(sample) - was for sample, was in zip(samples, before, strict=True))
    assert bucket >= total - 2, "two stragglers at most"
