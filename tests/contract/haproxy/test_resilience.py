"""What the controller survives: its own death, a rival, Consul's absence, and a catalog that loses most of the fleet."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.haproxy.rig import Edge, edge, fresh, public
from tests.support.eventually import eventually, time_scale


@pytest.fixture(scope="module")
def shared() -> Iterator[Edge]:
    with edge(EDGE_GUARD_GRACE_S="3") as made:
        yield made


@pytest.fixture
def running(shared: Edge) -> Edge:
    shared.restore()
    return shared


def test_most_of_the_fleet_vanishing_at_once_is_held_for_the_grace_and_then_followed(running: Edge) -> None:
    """The first of this file: what counts is the whole fleet."""
    programs = running.fleet("base", 6)
    names = {program.name for program in programs}
    # "At once" is what the controller sees: five one after the other, followed as they go, would be stopped in turn.
    running.controller.signal(signal.SIGSTOP)
    for name in sorted(names)[:5]:
        running.deregister(name)
    running.controller.signal(signal.SIGCONT)
    vanished = time.monotonic()
    eventually(lambda: running.metric("breakwater_controller_guard_active") == 1, 2)
    assert "guard holds" in running.log
    assert running.answers("/api/base", 30) == names
    # Those that are really dead are found out by HAProxy's own checks meanwhile.
    programs[0].close()
    eventually(lambda: not running.servers("base")["base-1"].up, 3)
    eventually(lambda: set(running.servers("base")) == {"base-6"}, 8)
    assert time.monotonic() - vanished > 2.5
    assert running.metric("breakwater_controller_guard_active") == 0
    assert running.answers("/api/base") == {"base-6"}


def test_second_controller_is_kept_off_and_told_why(running: Edge) -> None:
    rival = running.cli("run")
    assert rival.popen is not None
    assert rival.popen.returncode == 1
    text = rival.log.read_text()
    assert f"pid {running.controller.pid}" in text
    assert "Traceback" not in text


@pytest.mark.long
@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.3])
def test_killed_in_mid_change_and_restarted_it_converges(running: Edge, pause_s: float) -> None:
    base, new = fresh("base"), fresh("new")
    running.fleet(base, 3)
    for n in range(4, 10):
        running.instance(base, f"{base}-{n}")
    running.deregister(f"{base}-1")
    running.instance(new, f"{new}-1")
    time.sleep(pause_s)
    running.controller.kill()
    assert running.get(f"/api/{base}")[0] == 200
    running.deregister(f"{base}-2")
    running.start_controller()
    running.serves(f"/api/{new}", {f"{new}-1"})
    wanted = {f"{base}-{n}" for n in range(3, 10)}
    eventually(lambda: set(running.servers(base)) == wanted, 5)
    assert all(s.mode == "ready" and s.checked for s in running.servers(base).values())
    running.serves(f"/api/{base}", wanted)


def test_restarted_controller_needs_no_reload_and_a_path_has_its_first_holder(running: Edge) -> None:
    base, rogue = fresh("base"), fresh("rogue")
    running.fleet(base)
    running.reloads()
    running.controller.kill()
    running.start_controller()
    assert running.reloads() == 0
    running.controller.kill()
    running.deregister(f"{base}-1")
    running.deregister(f"{base}-2")
    running.instance(rogue, f"{rogue}-1", public(base))
    running.start_controller()
    assert eventually(lambda: running.verdict(rogue), 5)["state"] == "rejected"
    running.serves(f"/api/{base}", {"503"})


def test_edge_without_a_memory_of_its_own_learns_from_the_others_who_owns_what() -> None:
    """And a prefix whose owner is gone for too long is the heir's, whose verdict says so, on every edge."""
    meta = public("base")
    with edge(EDGE_ROUTE_MEMORY_S="3", EDGE_SYNC_S="1") as running:
        first = running.instance("base", "base-1", meta)
        eventually(lambda: running.owners() == {"/api/base": "base"}, 5)
        running.instance("rogue", "rogue-1", meta)
        eventually(lambda: running.verdict("rogue")["state"] == "rejected", 5)
        # By what stands in Consul's catalog now, the other one was there first.
        running.register("base", "base-2", first.port, meta)
        running.deregister("base-1")
        with running.second_controller("second"):
            eventually(lambda: running.verdict("rogue", "second")["state"] == "rejected", 20)
            assert running.owners() == {"/api/base": "base"}
            running.deregister("base-2")
            eventually(lambda: running.verdict("rogue")["state"] == "accepted", 20)
            eventually(lambda: running.verdict("rogue", "second")["paths"] == ["/api/base"], 20)
            assert running.owners() == {"/api/base": "rogue"}


def test_stopping_one_service_of_several_is_followed_at_once(running: Edge) -> None:
    base, rest = fresh("base"), fresh("rest")
    running.fleet(base, 3)
    running.fleet(rest, 4)
    trips = running.metric("breakwater_controller_guard_trips_total")
    for n in range(1, 4):
        running.deregister(f"{base}-{n}")
    running.serves(f"/api/{base}", {"503"}, within_s=1)
    assert running.metric("breakwater_controller_guard_trips_total") == trips


def test_verdicts_return_when_somebody_has_deleted_them(running: Edge) -> None:
    base = fresh("base")
    running.fleet(base, 1)
    eventually(lambda: running.verdict(base), 5)
    running.consul.call("DELETE", "/v1/kv/edge/status/edge?recurse")
    running.put("edge/status/edge/stray", {"service": "stray"})
    running.controller.kill()
    running.start_controller()
    eventually(lambda: running.verdict(base)["state"] == "accepted", 5)
    eventually(lambda: "edge/status/edge/stray" not in running.verdict_keys(), 5)


def test_reload_waits_until_what_a_hung_instance_holds_has_been_ended(running: Edge) -> None:
    """In the worker that is left behind nothing could end it any more, and it would hang for as long as that may live."""
    base, other = fresh("base"), fresh("other")
    hung, sound = running.fleet(base)
    hung.slow_s, sound.slow_s = 25.0, 0.0
    reloads, began = running.reloads(), time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(running.get, f"/api/{base}/slow", 30.0) for _ in range(2)]
        eventually(lambda: hung.seen > 0, 5)
        hung.ready = False
        eventually(lambda: not running.servers(base)[hung.name].up, 8, every_s=0.01)
        running.instance(other, f"{other}-1")
        assert [one.result()[1] for one in asked] == [sound.name] * 2
    assert time.monotonic() - began < 10 * time_scale()
    eventually(lambda: running.reloads() > reloads, 5)


def test_controller_that_starts_without_consul_waits_and_haproxy_serves(running: Edge) -> None:
    """The last of this file: Consul has forgotten everything when it is back."""
    base = fresh("base")
    names = {program.name for program in running.fleet(base)}
    eventually(lambda: f"{base}-2 127" in running.settings.config_path.read_text(), 10)
    running.controller.stop()
    running.consul.kill()
    running.controller.start()
    time.sleep(1)
    running.controller.must_run()
    assert running.answers(f"/api/{base}") == names
    running.consul.start()
    new = fresh("new")
    running.instance(new, f"{new}-1")
    running.serves(f"/api/{new}", {f"{new}-1"}, 15)
