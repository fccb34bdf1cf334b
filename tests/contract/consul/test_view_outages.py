"""A Consul that is away, comes back empty, or tells of its past: what a view and a keeper make of it."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from discovery import ConsulApi, HttpCheck, Keeper, Registration, View
from discovery.balancing.balancer import usable
from discovery.consul.api import ServiceRead
from discovery.errors import ConsulUnreachable
from tests.contract.consul.conftest import WAIT_S
from tests.support.eventually import eventually, time_scale
from tests.support.faulty import Passing, faulty_proxy
from tests.support.servers import ConsulServer, consul


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


@pytest.mark.long
def test_consul_that_plays_its_log_back_is_not_believed_before_the_end(tmp_path: Path) -> None:
    """As each of them does that is started again: until then it tells of the past, and calls it passing."""
    # A question asked while there is no leader is refused at once, instead of being kept until there is one.
    config = {"data_dir": str(tmp_path / "data"), "performance": {"rpc_hold_timeout": "20ms"}}
    with consul(tmp_path, config=config) as server:
        api = ConsulApi(server.address, read_timeout_s=1.0)
        api.register(Registration("moves", "127.0.0.1", 1, "moves-1", check=None))
        eventually(lambda: answered_ports(server) == {1}, 5)
        for _ in range(150):
            api.kv_put("takes/a/while", os.urandom(500_000))
        api.register(Registration("moves", "127.0.0.1", 2, "moves-1", check=None))
        eventually(lambda: answered_ports(server) == {2}, 5)
        followed = View(ConsulApi(server.address, read_timeout_s=1.0), wait_s=WAIT_S)
        followed.start()
        try:
            assert followed.ready(5)
            seen = {one.port for one in followed.snapshot().instances("moves")}
            followed.on_change(lambda _, snapshot: seen.update(i.port for i in snapshot.instances("moves")))
            answered: set[int] = set()
            for _ in range(4):  # its past lasts a moment, in which no question may have come
                server.kill()
                time.sleep(1.2)
                server.process.start()
                now: set[int] = set()
                eventually(lambda now=now: now.update(answered_ports(server)) or 2 in now, 20, every_s=0.002)
                eventually(lambda: followed.healthy and followed.age_s() < 2 * WAIT_S, 20)
                time.sleep(0.5)
                answered |= now
                if 1 in answered:
                    break
        finally:
            followed.stop()
        assert answered == {1, 2}, "Consul did not tell of its past"
        assert seen == {2}


def answered_ports(server: ConsulServer) -> set[int]:
    """What Consul answers by default."""
    return {entry["Service"]["Port"] for entry in server.call("GET", "/v1/health/service/moves")}  # type: ignore[attr-defined]
