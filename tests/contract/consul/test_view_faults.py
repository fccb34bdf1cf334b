"""A Consul that lies, stumbles, hangs or restarts: each leaves the last good state, and is recovered from."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from discovery import ConsulApi, HttpCheck, Keeper, Registration, View
from discovery.balancing.balancer import usable
from discovery.clock import SystemClock
from discovery.consul.api import ServiceRead
from discovery.errors import ConsulError, ConsulUnreachable
from tests.support.eventually import eventually, time_scale
from tests.support.faulty import Fault, FaultyProxy, Passing, faulty_proxy
from tests.support.servers import ConsulServer, consul

WAIT_S = 0.5
# Registering what is registered already changes nothing: each test brings a weight of its own.
WEIGHTS = itertools.count(20)


@pytest.fixture(scope="module")
def server() -> Iterator[ConsulServer]:
    with consul() as started:
        yield started


@pytest.fixture(scope="module")
def direct(server: ConsulServer) -> ConsulApi:
    """Consul without the proxy."""
    return ConsulApi(server.address)


@pytest.fixture
def proxy(server: ConsulServer) -> Iterator[FaultyProxy]:
    with faulty_proxy(server.http_port) as started:
        yield started


@pytest.fixture
def view(direct: ConsulApi, proxy: FaultyProxy) -> Iterator[View]:
    for port in (1, 2):
        direct.register(Registration("stays", "127.0.0.1", port, f"stays-{port}", check=None))
    followed = View(ConsulApi(proxy.address, read_timeout_s=0.5), wait_s=WAIT_S, grace_s=1.0)
    followed.start()
    assert followed.ready(5)
    assert len(followed.snapshot().instances("stays")) == 2
    yield followed
    followed.stop()


def error_500(answer: Passing) -> Passing:
    return replace(answer, status=500, body=b"No cluster leader", index=None)


def forbidden(answer: Passing) -> Passing:
    return replace(answer, status=403, body=b"Permission denied", index=None)


def no_json(answer: Passing) -> Passing:
    return replace(answer, body=b"<html>")


def other_json(answer: Passing) -> Passing:
    return replace(answer, body=b'"hello"')


def no_index(answer: Passing) -> Passing:
    return replace(answer, index=None)


def empty(answer: Passing) -> Passing:
    """What an election can give: 200, and nothing in it, from every path."""
    if answer.path.startswith("/v1/status/leader"):
        return replace(answer, body=b'""')
    return replace(answer, body=b"{}" if answer.body.startswith(b"{") else b"[]")


def empty_health(answer: Passing) -> Passing:
    return replace(answer, body=b"[]") if "/health/service/" in answer.path else answer


def empty_catalog(answer: Passing) -> Passing:
    """Only the blocking read is empty: a re-read of the leader still shows everything."""
    unconfirmed = "/catalog/services" in answer.path and "consistent" not in answer.path
    return replace(answer, body=b"{}") if unconfirmed else answer


def broken_node(answer: Passing) -> Passing:
    """The first of two instances has a node that is no object."""
    entries = json.loads(answer.body) if "/health/service/stays" in answer.path else []
    if not entries:
        return answer
    entries[0]["Node"] = None
    return replace(answer, body=json.dumps(entries).encode())


def cut_short(answer: Passing) -> Passing:
    return replace(answer, body=answer.body[: len(answer.body) // 2])


def bottomless(answer: Passing) -> Passing:
    """What Python's parser leaves with an error of its own kind."""
    return replace(answer, body=b"[" * 100_000)


def bottomless_health(answer: Passing) -> Passing:
    return bottomless(answer) if "/health/service/" in answer.path else answer


def odd_types(answer: Passing) -> Passing:
    """Lists where texts should be, and texts for numbers."""
    found = json.loads(answer.body)
    if not isinstance(found, list):
        return replace(answer, body=json.dumps([found]).encode())
    for entry in found:
        if isinstance(entry.get("Service"), dict):
            entry["Service"]["CreateIndex"] = "many"
        entry["ServiceName"] = ["stays"]
    return replace(answer, body=json.dumps(found).encode() if found else b'[{"Node": ["a"]}]')


def index_back(answer: Passing) -> Passing:
    return replace(answer, index=1) if answer.index else answer


def hang_up(answer: Passing) -> None:
    return None


FAULTS = [
    error_500,
    forbidden,
    no_json,
    other_json,
    no_index,
    empty,
    empty_health,
    empty_catalog,
    broken_node,
    cut_short,
    bottomless,
    bottomless_health,
    odd_types,
    index_back,
    hang_up,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_leaves_the_last_good_state_and_is_recovered_from(
    view: View, proxy: FaultyProxy, direct: ConsulApi, fault: Fault
) -> None:
    lost: list[str] = []
    view.on_change(
        lambda changes, _: lost.extend(
            change.service for change in changes if change.service == "stays" and len(change.after) < 2
        )
    )
    with proxy.failing(fault):
        # Something that makes the view read "stays" and the rest again while the fault lasts.
        weight = next(WEIGHTS)
        direct.register(Registration("stays", "127.0.0.1", 1, "stays-1", weight=weight, check=None))
        direct.register(Registration("noise", "127.0.0.1", 9, "noise-9", check=None))
        direct.deregister("noise-9")
        time.sleep(1.2)
        assert len(view.snapshot().instances("stays")) == 2
    direct.register(Registration("stays", "127.0.0.1", 3, "stays-3", check=None))
    try:
        eventually(lambda: len(view.snapshot().instances("stays")) == 3, 12)
        eventually(lambda: view.healthy, 12)
        eventually(lambda: view.snapshot().instances("stays")[0].meta["edge-weight"] == str(weight), 5)
        assert not lost
    finally:
        direct.deregister("stays-3")


def test_hang_is_noticed_by_age_and_health_and_recovered_from(
    view: View, proxy: FaultyProxy, direct: ConsulApi
) -> None:
    with proxy.hanging():
        eventually(lambda: not view.healthy, 6)
        eventually(lambda: view.age_s() > 2 * WAIT_S, 6)
        assert len(view.snapshot().instances("stays")) == 2
        assert proxy.stumbles
    eventually(lambda: view.healthy and view.age_s() < 2 * WAIT_S, 12)


def test_reads_go_down_one_connection_that_is_kept(view: View, proxy: FaultyProxy, direct: ConsulApi) -> None:
    before = proxy.connections
    for _ in range(5):
        weight = str(next(WEIGHTS))
        direct.register(Registration("stays", "127.0.0.1", 1, "stays-1", weight=int(weight), check=None))
        eventually(lambda: view.snapshot().instances("stays")[0].meta["edge-weight"] == weight, 5)  # noqa: B023
    assert proxy.connections <= before + 1, "one more for a question that is not a read"


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Nothing in this process can open a file or a socket."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_view_and_keeper_outlive_a_process_without_descriptors_and_an_empty_agent() -> None:
    with consul() as server:
        api = ConsulApi(server.address)
        mine = Registration("mine", "127.0.0.1", 1, "mine-1", check=HttpCheck(interval_s=3600))
        view, keeper = View(api, wait_s=WAIT_S, grace_s=0.5), Keeper(api, mine, interval_s=0.2)
        view.start()
        keeper.start()
        try:
            eventually(lambda: view.healthy and view.snapshot().instances("mine"), 10)
            with no_descriptors():
                with pytest.raises(OSError, match="Too many open files"):
                    socket.socket()
                server.kill()
                eventually(lambda: not view.healthy, 5)
                time.sleep(1.0)
            server.start()
            eventually(lambda: api.holds(mine), 10)
            eventually(lambda: view.healthy and usable(view.snapshot().instances("mine")), 15)
        finally:
            view.stop()
            keeper.stop()


def test_listener_that_raises_ends_neither_the_view_nor_the_others(view: View, direct: ConsulApi) -> None:
    heard: list[int] = []

    def bad(*_: object) -> None:
        raise RuntimeError("a bug")

    view.on_change(bad)
    view.on_change(lambda changes, snapshot: heard.append(snapshot.version))
    for count in (1, 2):
        direct.register(Registration("stays", "127.0.0.1", 1, "stays-1", weight=next(WEIGHTS), check=None))
        eventually(lambda: len(heard) >= count, 5)  # noqa: B023
    assert view.healthy


def test_broken_answer_for_one_service_delays_no_other(
    view: View, proxy: FaultyProxy, direct: ConsulApi
) -> None:
    with proxy.failing(broken_node):
        direct.register(Registration("stays", "127.0.0.1", 1, "stays-1", weight=200, check=None))
        time.sleep(0.5)
        began = time.monotonic()
        direct.register(Registration("other", "127.0.0.1", 8, "other-8", check=None))
        eventually(lambda: view.snapshot().instances("other"), 2)
        assert time.monotonic() - began < 0.5 * time_scale()
    eventually(lambda: view.snapshot().instances("stays")[0].meta["edge-weight"] == "200", 10)
    direct.deregister("other-8")


def test_last_instance_that_leaves_is_believed_at_once(view: View, direct: ConsulApi) -> None:
    direct.register(Registration("leaves", "127.0.0.1", 7, "leaves-7", check=None))
    eventually(lambda: view.snapshot().instances("leaves"), 2)
    began = time.monotonic()
    direct.deregister("leaves-7")
    eventually(lambda: not view.snapshot().instances("leaves"), 2)
    assert time.monotonic() - began < 0.5 * time_scale()


def test_view_that_starts_without_consul_follows_it_once_it_is_there() -> None:
    with consul() as late:
        late.kill()
        view = View(ConsulApi(late.address), wait_s=WAIT_S)
        view.start()
        try:
            assert not view.ready(0.5)
            assert view.age_s() == float("inf")
            assert not view.healthy
            late.start()
            assert view.ready(10)
        finally:
            view.stop()


def test_view_whose_first_look_is_cut_short_is_ready_with_what_it_has_published() -> None:
    """What has been published is kept when Consul comes back empty; that asks for `ready`."""

    class CutShort(ConsulApi):
        def service_index(self, name: str) -> ServiceRead:
            raise ConsulUnreachable("gone in this moment")

    with consul() as server:
        ConsulApi(server.address).register(Registration("kept", "127.0.0.1", 5, "kept-5", check=None))
        view = View(CutShort(server.address), wait_s=WAIT_S)
        view.start()
        try:
            assert view.ready(5 * time_scale())
            assert "kept" in view.snapshot().services
            eventually(lambda: not view.healthy, 5)
        finally:
            view.stop()


def test_consul_restarted_empty_gives_keepers_time_to_register_again() -> None:
    with consul() as server:
        api = ConsulApi(server.address)
        kept = Registration("kept", "127.0.0.1", 5, "kept-5", check=HttpCheck(interval_s=3600))
        api.register(kept, "passing")
        api.register(Registration("lost", "127.0.0.1", 6, "lost-6", check=None))
        view = View(ConsulApi(server.address), wait_s=WAIT_S, grace_s=5.0)
        gaps: list[int] = []
        view.start()
        try:
            eventually(lambda: {"kept", "lost"} <= view.snapshot().services.keys(), 5)
            view.on_change(lambda _, snapshot: gaps.append(len(usable(snapshot.instances("kept")))))
            server.kill()
            eventually(lambda: not view.healthy, 5)
            time.sleep(1.5)
            server.start()
            eventually(lambda: view.healthy, 10)
            time.sleep(0.5)
            assert {"kept", "lost"} <= view.snapshot().services.keys()
            api.register(kept, "passing")
            eventually(lambda: "lost" not in view.snapshot().services, 15)
            assert usable(view.snapshot().instances("kept"))
            assert 0 not in gaps
        finally:
            view.stop()


def test_first_answer_after_an_outage_ends_everybody_elses_backoff(
    proxy: FaultyProxy, direct: ConsulApi
) -> None:
    """Else the time for which missing instances are kept runs down while one watch still sits out its pause."""

    class Unlucky(SystemClock):
        """One watch draws the longest of pauses each time: the sixth ask is 6.2 s after the first."""

        def random(self) -> float:
            return 1.0 if threading.current_thread().name == "watch-critical" else 0.1

    def outage(answer: Passing) -> Passing:
        asked.append(answer.path)
        return error_500(answer)

    asked: list[str] = []
    direct.register(Registration("there", "127.0.0.1", 1, "there-1", check=None))
    view = View(ConsulApi(proxy.address, read_timeout_s=2), clock=Unlucky(), wait_s=WAIT_S)
    view.start()
    try:
        assert view.ready(5 * time_scale())
        with proxy.failing(outage):
            eventually(lambda: sum("/state/critical" in path for path in asked) == 5, 10)
        began = time.monotonic()
        eventually(lambda: view.healthy, 10)
        assert time.monotonic() - began < 1.5 * time_scale()
    finally:
        view.stop()


def test_consul_that_stumbles_over_every_other_question_is_not_asked_in_a_hurry(
    proxy: FaultyProxy, direct: ConsulApi
) -> None:
    """Each good answer would end the pause after each bad one: hundreds of questions a second."""

    def only_anew(answer: Passing) -> Passing:
        asked.append(answer.path)
        return answer if "index=" not in answer.path or "index=0" in answer.path else error_500(answer)

    asked: list[str] = []
    direct.register(Registration("there", "127.0.0.1", 1, "there-1", check=None))
    view = View(ConsulApi(proxy.address, read_timeout_s=2), wait_s=0.001)
    view.start()
    try:
        assert view.ready(5 * time_scale())
        with proxy.failing(only_anew):
            time.sleep(3)
        assert 3 < len(asked) < 900, len(asked)
    finally:
        view.stop()


def test_first_watch_to_return_after_a_reset_already_keeps_what_is_missing() -> None:
    """The list of services may be the last to return; what another watch has read before that must not count as gone."""
    with consul() as server, faulty_proxy(server.http_port) as proxy:
        api = ConsulApi(server.address)
        kept = [
            Registration("kept", "127.0.0.1", n, f"kept-{n}", check=HttpCheck(interval_s=3600))
            for n in (1, 2)
        ]
        for registration in kept:
            api.register(registration, "passing")
        view = View(ConsulApi(proxy.address, read_timeout_s=0.5), wait_s=WAIT_S, grace_s=10.0)
        view.start()
        try:
            eventually(lambda: len(usable(view.snapshot().instances("kept"))) == 2, 5)
            assert view.ready(5)
            server.kill()
            eventually(lambda: not view.healthy, 5)
            time.sleep(1.5)

            def list_is_late(answer: Passing) -> Passing | None:
                listed = answer.path.startswith("/v1/catalog/services") and "consistent" not in answer.path
                return None if listed else answer

            with proxy.failing(list_is_late):
                server.start()
                api.register(kept[0], "critical")

                def read() -> bool:
                    return {i.id: i.status for i in view.snapshot().instances("kept")}.get(
                        "kept-1"
                    ) == "critical"

                eventually(read, 10)
                assert "kept-2" in {instance.id for instance in view.snapshot().instances("kept")}
                eventually(lambda: proxy.stumbles, 10)  # the list has been asked for, and was not answered
        finally:
            view.stop()


def test_consul_that_plays_its_log_back_is_not_believed_before_the_end(tmp_path: Path) -> None:
    """As each of them does that is started again: until then it tells of the past, and calls it passing."""
    # Who asks while there is no leader is told so at once, instead of being kept until there is one.
    config = {"data_dir": str(tmp_path / "data"), "performance": {"rpc_hold_timeout": "20ms"}}
    with consul(tmp_path, config=config) as server:
        api = ConsulApi(server.address, read_timeout_s=1.0)
        api.register(Registration("moves", "127.0.0.1", 1, "moves-1", check=None))
        eventually(lambda: told_ports(server) == {1}, 5)
        for _ in range(150):
            api.kv_put("takes/a/while", os.urandom(500_000))
        api.register(Registration("moves", "127.0.0.1", 2, "moves-1", check=None))
        eventually(lambda: told_ports(server) == {2}, 5)
        followed = View(ConsulApi(server.address, read_timeout_s=1.0), wait_s=WAIT_S)
        followed.start()
        try:
            assert followed.ready(5)
            seen = {one.port for one in followed.snapshot().instances("moves")}
            followed.on_change(lambda _, snapshot: seen.update(i.port for i in snapshot.instances("moves")))
            told: set[int] = set()
            for _ in range(4):  # its past lasts a moment, in which nobody may have asked
                server.kill()
                time.sleep(1.2)
                server.process.start()
                now: set[int] = set()
                eventually(lambda now=now: now.update(told_ports(server)) or 2 in now, 20, every_s=0.002)
                eventually(lambda: followed.healthy and followed.age_s() < 2 * WAIT_S, 20)
                time.sleep(0.5)
                told |= now
                if 1 in told:
                    break
        finally:
            followed.stop()
        assert told == {1, 2}, "Consul did not tell of its past"
        assert seen == {2}


def test_nothing_is_read_after_an_outage_before_consul_is_certain(view: View, proxy: FaultyProxy) -> None:
    """As the test before, with a past that lasts until it has been asked for."""

    def past(answer: Passing) -> Passing:
        if "consistent" in answer.path:
            refused.append(answer.path)
            return error_500(answer)
        if not answer.path.startswith("/v1/health/service/"):
            return answer
        return replace(answer, body=answer.body.replace(b'"Port":1,', b'"Port":9,'), index=10**9)

    refused: list[str] = []
    seen: set[int] = set()
    view.on_change(lambda _, snapshot: seen.update(one.port for one in snapshot.instances("stays")))
    with proxy.failing(lambda _: None):
        eventually(lambda: not view.healthy, 5)
        time.sleep(1.2)
    with proxy.failing(past):
        eventually(lambda: len(refused) >= 2, 10)
        time.sleep(1.0)
    eventually(lambda: view.healthy and view.age_s() < 2 * WAIT_S, 12)
    assert 9 not in seen
    assert [one.port for one in view.snapshot().instances("stays")] == [1, 2]


def test_keys_are_not_read_from_a_consul_that_is_not_certain(direct: ConsulApi, proxy: FaultyProxy) -> None:
    """Who owns a path must not be learnt from its past."""
    direct.kv_put("certain", b"a")
    api = ConsulApi(proxy.address)
    assert api.kv_get("certain") == b"a"
    with proxy.failing(lambda answer: error_500(answer) if "consistent" in answer.path else answer):
        with pytest.raises(ConsulError):
            api.kv_get("certain")
        with pytest.raises(ConsulError):
            api.kv_entry("certain", 1, 0.1)


def told_ports(server: ConsulServer) -> set[int]:
    """What Consul tells whoever asks, as it is by default."""
    return {entry["Service"]["Port"] for entry in server.call("GET", "/v1/health/service/moves")}  # type: ignore[attr-defined]
