"""The plan: pure, so that every case is a table entry."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from discovery.model import Route
from haproxy.controller.config.model import Backend, Server
from haproxy.controller.config.template import server_params
from haproxy.controller.errors import BadWord
from haproxy.controller.runtime.diff import Step, draining, plan_backend
from haproxy.controller.runtime.observed import ObservedServer
from haproxy.controller.runtime.socket import command

ROUTE = Route("users", ("/api/users",))
A = Server("a", "127.0.0.1", 20001)
B = Server("b", "127.0.0.1", 20002)
DRAIN_B = ["set server svc_users/b state drain", "disable health svc_users/b"]


def seen(server: Server, **changes: object) -> ObservedServer:
    as_desired = ObservedServer(
        server.name,
        server.address,
        server.port,
        server.weight,
        server.backup,
        mode="ready",
        up=True,
        checked=True,
        sessions=0,
    )
    return replace(as_desired, **changes)  # type: ignore[arg-type]


def plan(
    desired: list[Server], observed: list[ObservedServer], overdue: set[str] | None = None
) -> list[Step]:
    backend = Backend(ROUTE, tuple(desired))
    return plan_backend(backend, {s.name: s for s in observed}, frozenset(overdue or ()), server_params)


def lines(steps: list[Step]) -> list[str]:
    return [str(line) for step in steps for line in step.commands]


READY_A = "set server svc_users/a state ready"
REMOVE_B = [
    "set server svc_users/b state maint",
    "set server svc_users/b addr 127.0.0.1 port 1",
    "del server svc_users/b",
]
DRAINING_B = seen(B, mode="drain", sessions=2)


@pytest.mark.parametrize(
    ("desired", "observed", "commands"),
    [
        ([A, B], [seen(A), seen(B)], []),
        ([replace(A, weight=7)], [seen(A)], ["set server svc_users/a weight 7"]),
        # One that has gone is drained, stays while requests are under way, and is removed with its idle connections.
        ([A], [seen(A), seen(B)], DRAIN_B),
        ([A], [seen(A), DRAINING_B], ["disable health svc_users/b"]),
        ([A], [seen(A), replace(DRAINING_B, checked=False)], []),
        ([A], [seen(A), seen(B, mode="drain")], REMOVE_B),
        # Back while it drains; left half added by a killed controller; left to its own check, which holds it for down.
        ([A], [seen(A, mode="drain")], [READY_A]),
        (
            [A],
            [seen(A, mode="maint", up=False, checked=False)],
            ["enable health svc_users/a", READY_A],
        ),
        ([A], [seen(A, up=False)], []),
        # Consul may have asked another service's container, which has got the address meanwhile.
        ([A], [seen(A, mode="drain", up=False)], [READY_A]),
    ],
)
def test_commands_that_bring_it_in_step(
    desired: list[Server], observed: list[ObservedServer], commands: list[str]
) -> None:
    assert lines(plan(desired, observed)) == commands


@pytest.mark.parametrize(("address", "written"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_new_instance_is_added_with_the_parameters_of_the_file_and_enabled(
    address: str, written: str
) -> None:
    new = replace(B, address=address)
    assert lines(plan([A, new], [seen(A)])) == [
        f"add server svc_users/b {written}:20002 {server_params(ROUTE, new)}",
        "enable health svc_users/b",
        "enable server svc_users/b",
    ]


def test_overdue_instance_loses_its_requests() -> None:
    steps = lines(plan([A], [seen(A), DRAINING_B], overdue={"b"}))
    assert "shutdown sessions server svc_users/b" in steps
    assert steps[-1] == "del server svc_users/b"


def test_instance_left_half_removed_gets_another_server_and_the_old_one_goes() -> None:
    steps = plan([A], [seen(A, mode="maint", up=False, port=1)])
    assert [step.kind for step in steps] == ["add", "remove"]
    assert lines(steps)[-1] == "del server svc_users/a"


@pytest.mark.parametrize("changes", [{"port": 20009}, {"address": "127.0.0.9"}, {"backup": True}])
def test_instance_that_moved_or_is_a_backup_now_gets_a_server_beside_the_old_one_which_drains(
    changes: dict[str, Any],
) -> None:
    changed = replace(A, **changes)
    steps = plan([changed], [seen(A)])
    (name,) = {step.server for step in steps} - {"a"}
    assert re.fullmatch("a:[0-9a-f]{8}", name)
    assert [(step.kind, step.server) for step in steps] == [("add", name), ("drain", "a")]
    new = seen(replace(changed, name=name))
    line = f"add server svc_users/{name} {changed.address}:{changed.port} {server_params(ROUTE, changed)}"
    assert lines(steps)[0] == line
    assert draining(Backend(ROUTE, (changed,)), {"a": seen(A), name: new}) == {"a"}
    # It keeps that server, also once the old one has gone, and is itself again after a reload.
    assert [step.kind for step in plan([changed], [seen(A, mode="drain"), new])] == ["remove"]
    assert plan([changed], [new]) == []
    assert plan([changed], [seen(changed)]) == []
    # As it was before, while that drains.
    assert [(s.kind, s.server) for s in plan([A], [seen(A, mode="drain"), new])] == [
        ("ready", "a"),
        ("drain", name),
    ]


def test_capacity_is_added_before_it_is_taken_away() -> None:
    kinds = [step.kind for step in plan([B], [seen(A)])]
    assert kinds == ["add", "drain"]


@pytest.mark.parametrize(
    "word",
    [*(f"a{bad}" for bad in "; \n\\'\"$"), "<<", "%[env(X)]", "", "a" * 251, "\N{FULLWIDTH DIGIT ONE}"],
)
def test_word_that_could_be_more_than_a_word_is_never_sent(word: str) -> None:
    with pytest.raises(BadWord):
        command("set", "server", word)
