"""What the controller survives: its own death, a rival, Consul's absence, and a catalog that loses most of the fleet."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.haproxy.rig import Edge, edge
from tests.support.eventually import eventually, time_scale

META = {"edge-path": "/api/base", "edge-auth": "public"}


def fleet(running: Edge, count: int) -> set[str]:
    names = {f"base-{n}" for n in range(count)}
    for name in sorted(names):
        running.instance("base", name, META)
    eventually(lambda: set(running.servers("base")) == names, 5)
    running.serves("/api/base", names)
    return names


def test_second_controller_is_kept_off_and_told_why() -> None:
    with edge() as running:
        rival = running.cli("run")
        assert rival.popen is not None
        assert rival.popen.returncode == 1
        text = rival.log.read_text()
        assert f"pid {running.controller.pid}" in text
        assert "Traceback" not in text


@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.3])
def test_killed_in_mid_change_and_restarted_it_converges(pause_s: float) -> None:
    with edge() as running:
        fleet(running, 3)
        for n in range(3, 9):
            running.instance("base", f"base-{n}", META)
        running.deregister("base-0")
        running.instance("new", "new-1", {"edge-path": "/api/new", "edge-auth": "public"})
        time.sleep(pause_s)
        running.controller.signal(signal.SIGKILL)
        running.controller.kill()
        assert running.get("/api/base")[0] == 200
        running.deregister("base-1")
        running.start_controller()
        running.serves("/api/new", {"new-1"})
        wanted = {f"base-{n}" for n in range(2, 9)}
        eventually(lambda: set(running.servers("base")) == wanted, 5)
        assert all(s.mode == "ready" and s.checked for s in running.servers("base").values())
        running.serves("/api/base", wanted)


def test_restarted_controller_needs_no_reload_when_nothing_changed() -> None:
    with edge() as running:
        fleet(running, 2)
        running.reloads()
        running.controller.kill()
        running.start_controller()
        assert running.reloads() == 0


def test_first_holder_keeps_its_path_while_the_controller_is_away() -> None:
    with edge() as running:
        fleet(running, 2)
        running.controller.kill()
        running.deregister("base-0")
        running.deregister("base-1")
        running.instance("rogue", "rogue-1", META)
        running.start_controller()
        assert eventually(lambda: running.verdict("rogue"), 5)["state"] == "rejected"
        running.serves("/api/base", {"503"})


def test_edge_without_a_memory_of_its_own_learns_from_the_others_who_owns_what() -> None:
    """And a prefix whose owner is gone for too long is the heir's, whose verdict says so, on every edge."""
    with edge(EDGE_ROUTE_MEMORY_S="3", EDGE_SYNC_S="1") as running:
        first = running.instance("base", "base-1", META)
        eventually(lambda: running.owners() == {"/api/base": "base"}, 5)
        running.instance("rogue", "rogue-1", META)
        eventually(lambda: running.verdict("rogue")["state"] == "rejected", 5)
        # By what stands in Consul's catalog now, the other one was there first.
        running.register("base", "base-2", first.port, META)
        running.deregister("base-1")
        with running.second_controller("second"):
            eventually(lambda: running.verdict("rogue", "second")["state"] == "rejected", 20)
            assert running.owners() == {"/api/base": "base"}
            running.deregister("base-2")
            eventually(lambda: running.verdict("rogue")["state"] == "accepted", 20)
            eventually(lambda: running.verdict("rogue", "second")["paths"] == ["/api/base"], 20)
            assert running.owners() == {"/api/base": "rogue"}


def test_consul_away_serves_on_and_consul_back_is_followed() -> None:
    with edge() as running:
        names = fleet(running, 2)
        running.consul.process.signal(signal.SIGSTOP)
        try:
            time.sleep(2)
            assert running.answers("/api/base") == names
        finally:
            running.consul.process.signal(signal.SIGCONT)
        running.consul.kill()
        eventually(lambda: running.metric("breakwater_controller_view_age_seconds") > 1, 5)
        assert running.answers("/api/base") == names
        running.consul.start()  # empty: it has forgotten all of them
        time.sleep(1)
        assert running.answers("/api/base") == names
        for program in running.programs:
            running.register("base", program.name, program.port, META)
        running.instance("base", "base-9", META)
        running.serves("/api/base", names | {"base-9"}, within_s=10)
        assert running.controller.running


def test_controller_started_without_consul_waits_and_haproxy_serves() -> None:
    with edge() as running:
        names = fleet(running, 2)
        eventually(lambda: "base-1 127" in running.settings.config_path.read_text(), 5)
        running.controller.stop()
        running.consul.kill()
        running.controller.start()
        time.sleep(1)
        running.controller.must_run()
        assert running.answers("/api/base") == names


def test_most_of_the_fleet_vanishing_at_once_is_held_for_the_grace_and_then_followed() -> None:
    with edge(EDGE_GUARD_GRACE_S="3") as running:
        names = fleet(running, 6)
        # "At once" is what the controller sees: five one after the other, followed as they go, would be somebody stopping them in turn.
        running.controller.signal(signal.SIGSTOP)
        for name in sorted(names)[:5]:
            running.deregister(name)
        running.controller.signal(signal.SIGCONT)
        vanished = time.monotonic()
        eventually(lambda: running.metric("breakwater_controller_guard_active") == 1, 2)
        assert "guard holds" in running.log
        assert running.answers("/api/base", 30) == names
        # Those that are really dead are found out by HAProxy's own checks meanwhile.
        dead = running.programs[0]
        dead.close()
        eventually(lambda: not running.servers("base")[dead.name].up, 3)
        eventually(lambda: set(running.servers("base")) == {"base-5"}, 8)
        assert time.monotonic() - vanished > 2.5
        assert running.metric("breakwater_controller_guard_active") == 0
        assert running.answers("/api/base") == {"base-5"}


def test_stopping_one_service_of_several_is_followed_at_once() -> None:
    with edge() as running:
        fleet(running, 3)
        for n in range(4):
            running.instance("rest", f"rest-{n}", {"edge-path": "/api/rest", "edge-auth": "public"})
        running.serves("/api/rest", {f"rest-{n}" for n in range(4)})
        for n in range(3):
            running.deregister(f"base-{n}")
        running.serves("/api/base", {"503"}, within_s=1)
        assert running.metric("breakwater_controller_guard_trips_total") == 0


def test_verdicts_return_when_somebody_has_deleted_them() -> None:
    with edge() as running:
        fleet(running, 1)
        eventually(lambda: running.verdict("base"), 5)
        running.consul.call("DELETE", "/v1/kv/edge/status/edge?recurse")
        running.put("edge/status/edge/stray", {"service": "stray"})
        running.controller.kill()
        running.start_controller()
        eventually(lambda: running.verdict("base")["state"] == "accepted", 5)

        def stray_gone() -> bool:
            keys = running.consul.call("GET", "/v1/kv/edge/status/edge/?keys")
            return isinstance(keys, list) and "edge/status/edge/stray" not in keys

        eventually(stray_gone, 5)


def test_reload_waits_until_what_a_hung_instance_holds_has_been_ended() -> None:
    """In the worker that is left behind nobody could end it any more, and it would hang for as long as that may live."""
    with edge() as running, ThreadPoolExecutor(2) as pool:
        fleet(running, 2)
        hung, sound = running.programs
        hung.slow_s, sound.slow_s = 25.0, 0.0
        reloads, began = running.reloads(), time.monotonic()
        asked = [pool.submit(running.get, "/api/base/slow", 30.0) for _ in range(2)]
        eventually(lambda: hung.seen > 0, 5)
        hung.ready = False
        eventually(lambda: not running.servers("base")[hung.name].up, 8, every_s=0.01)
        running.instance("other", "other-1")
        assert [one.result()[1] for one in asked] == [sound.name] * 2
        assert time.monotonic() - began < 10 * time_scale()
        eventually(lambda: running.reloads() > reloads, 5)
