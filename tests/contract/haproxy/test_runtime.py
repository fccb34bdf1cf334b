"""Our commands and parsers against a real HAProxy."""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from discovery.model import Route
from haproxy.controller.config.model import Backend, EdgeState, Server
from haproxy.controller.config.template import server_params
from haproxy.controller.errors import Unreachable
from haproxy.controller.runtime.diff import plan_backend
from haproxy.controller.runtime.observed import ObservedServer
from haproxy.controller.runtime.socket import Master, Runtime, Session, command, succeeded
from tests.contract.haproxy.rig import Program
from tests.support.edge import Edge, edge
from tests.support.eventually import eventually, time_scale

ROUTE = Route("users", ("/api/users",), auth="public")


@dataclass
class Proxy:
    """An edge that knows of the first of two instances."""

    edge: Edge
    runtime: Runtime
    programs: list[Program]

    def plan(
        self, session: Session, desired: list[Server], overdue: frozenset[str] = frozenset()
    ) -> list[str]:
        """One turn of observe, plan, send; the answers."""
        backend = Backend(ROUTE, tuple(desired))
        steps = plan_backend(backend, self.servers(session), overdue, server_params)
        return [session.send(line) for step in steps for line in step.commands]

    def servers(self, session: Session) -> dict[str, ObservedServer]:
        found = session.servers("svc_users")
        assert found is not None
        return found

    def get(self) -> str:
        return self.edge.get("/api/users").body.decode()


@pytest.fixture(scope="module")
def shared() -> Iterator[Proxy]:
    programs = [Program("users", name) for name in ("a", "b")]
    first = Server("a", "127.0.0.1", programs[0].port)
    with edge(EdgeState((Backend(ROUTE, (first,)),))) as running:
        runtime = Runtime(running.settings.runtime_socket, timeout_s=1.0)
        eventually(runtime.info, 5)
        yield Proxy(running, runtime, programs)
    for program in programs:
        program.close()


@pytest.fixture
def proxy(shared: Proxy) -> Proxy:
    """With the first instance alone."""
    with shared.runtime.session() as session:
        eventually(lambda: not shared.plan(session, both(shared)[:1]), 5)
    return shared


def both(proxy: Proxy) -> list[Server]:
    return [Server(program.name, "127.0.0.1", program.port) for program in proxy.programs]


def test_added_server_is_up_before_its_first_check_and_keeps_connections(proxy: Proxy) -> None:
    with proxy.runtime.session() as session:
        answers = proxy.plan(session, both(proxy))
        added = proxy.servers(session)["b"]
        assert len(answers) == 3
        assert all(map(succeeded, answers))
        assert (added.mode, added.up, added.checked, added.sessions) == ("ready", True, True, 0)
        assert {proxy.get() for _ in range(4)} == {"a", "b"}
        assert proxy.plan(session, both(proxy)) == []
        row = [
            r
            for r in session.send(command("show", "servers", "conn", "svc_users")).splitlines()
            if "/b " in r
        ][0]
        assert int(row.split()[12]) >= 1, row  # idle connections


def test_server_with_idle_connections_is_removed_in_a_turn_or_two(proxy: Proxy) -> None:
    with proxy.runtime.session() as session:
        proxy.plan(session, both(proxy))
        for _ in range(6):
            proxy.get()
        assert all(map(succeeded, proxy.plan(session, both(proxy)[:1])))
        said: list[str] = []
        eventually(
            lambda: said.extend(proxy.plan(session, both(proxy)[:1])) or set(proxy.servers(session)) == {"a"},
            2,
        )
        assert said[-1].strip() == "Server deleted."


def test_server_of_the_file_is_removed_as_well(proxy: Proxy) -> None:
    with proxy.runtime.session() as session:
        for _ in range(3):
            proxy.plan(session, both(proxy)[1:])
        assert set(proxy.servers(session)) == {"b"}
        assert proxy.get() == "b"


def test_weight_and_state_are_observed_as_ordered(proxy: Proxy) -> None:
    with proxy.runtime.session() as session:
        heavy = Server("a", "127.0.0.1", proxy.programs[0].port, weight=256)
        assert all(map(succeeded, proxy.plan(session, [heavy])))
        assert proxy.servers(session)["a"].weight == 256
        assert proxy.plan(session, [heavy]) == []
        session.send(command("set", "server", "svc_users/a", "state", "maint"))
        assert proxy.servers(session)["a"].mode == "maint"
        assert all(map(succeeded, proxy.plan(session, [heavy])))
        assert proxy.servers(session)["a"].mode == "ready"
        assert proxy.servers(session)["a"].up


def test_refusals_are_told_from_success(proxy: Proxy) -> None:
    with proxy.runtime.session() as session:
        for words in (
            ("del", "server", "svc_users/a"),
            ("del", "server", "svc_users/none"),
            ("add", "server", "svc_users/a", "127.0.0.1:1"),
            ("set", "server", "svc_none/a", "state", "drain"),
            ("no", "such", "command"),
        ):
            answer = session.send(command(*words))
            assert not succeeded(answer), answer


def test_unknown_backend_is_none(proxy: Proxy) -> None:
    with proxy.runtime.session() as session:
        assert session.servers("svc_none") is None
        assert "svc_users" in session.backends()


def test_hanging_haproxy_is_given_up_in_time(proxy: Proxy) -> None:
    worker = proxy.runtime.info().pid
    proxy.edge.server.process.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(Unreachable):
            proxy.runtime.info()
        assert time.monotonic() - began < 3 * time_scale()
    finally:
        proxy.edge.server.process.signal(signal.SIGCONT)
    assert eventually(proxy.runtime.info, 5).pid == worker


def test_missing_socket_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        Runtime(tmp_path / "none.sock").info()
    with pytest.raises(Unreachable):
        Master(tmp_path / "none.sock").info()


def test_master_tells_its_worker(proxy: Proxy) -> None:
    master = Master(proxy.edge.server.master_socket).info()
    assert master.workers == (proxy.runtime.info().pid,)
    assert master.failed == 0


def test_without_a_descriptor_haproxy_is_out_of_reach_and_no_other_error(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(Unreachable, match="Too many open files"):
            Runtime(tmp_path / "haproxy.sock").info()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
