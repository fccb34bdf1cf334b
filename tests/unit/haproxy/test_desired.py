"""From instances to servers, routes and rejections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from discovery.contract import Policy, check_instance_id
from discovery.model import Instance, Status
from haproxy.controller.desired import Desire, Election, elect
from haproxy.controller.owners import OwnerBook
from haproxy.controller.verdicts import verdict

POLICY = Policy(control_ports=frozenset({8500}))


def instance(
    id_: str = "users-1",
    port: int = 20001,
    status: Status = "passing",
    index: int = 1,
    address: str = "127.0.0.1",
    maintenance: bool = False,
    node: str = "n1",
    **meta: str,
) -> Instance:
    given = {f"edge-{key.replace('_', '-')}": value for key, value in meta.items()}
    asked: Mapping[str, str] = {"edge-path": "/api/users", **given}
    return Instance("users", id_, node, address, port, status, maintenance, asked, index)


def elected(*instances: Instance) -> Election:
    return elect("users", instances, POLICY)


def names(election: Election) -> list[str]:
    return [server.name for server in election.servers]


def test_passing_and_warning_serve_critical_and_maintenance_do_not() -> None:
    election = elected(
        instance("a"),
        instance("b", status="warning"),
        instance("c", status="critical"),
        instance("d", maintenance=True),
    )
    assert names(election) == ["a", "b"]
    assert election.ordered_out == {"d"}


def test_warning_is_skipped_where_the_route_says_so() -> None:
    assert names(elected(instance("a", warning="skip"), instance("b", status="warning", warning="skip"))) == [
        "a"
    ]


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("edge-weight", {"weight": "0"}),
        ("edge-balance", {"balance": "roundrobin\n  program x"}),
        ("edge-check", {"check": "/x;y"}),
        ("edge-path", {"path": "/api/%[env(X)]"}),
        ("edge-timeout", {"timeout": "'1'"}),
        ("address", {"address": "unix@/tmp/x"}),
        ("address", {"address": "10.0.0.1"}),
        ("port", {"port": 8500}),
        ("id", {"id_": "x;y"}),
    ],
)
def test_bad_value_rejects_that_instance_alone(field: str, bad: dict[str, object]) -> None:
    broken = instance(**({"id_": "bad"} | bad))  # type: ignore[arg-type]
    election = elected(instance("good", index=2), broken)
    assert names(election) == ["good"]
    assert [(r.instance, r.field) for r in election.rejections] == [(broken.id, field)]


def test_majority_decides_the_route_and_the_others_are_told() -> None:
    election = elected(instance("a"), instance("b"), instance("c", index=9, auth="public"))
    assert election.route is not None
    assert election.route.auth == "jwt"
    assert names(election) == ["a", "b", "c"]
    assert [(r.instance, r.fatal) for r in election.rejections] == [("c", False)]


def test_instances_that_may_not_serve_have_no_vote() -> None:
    strangers = [instance(f"../{n}", index=9, auth="public") for n in range(3)]
    election = elected(instance("a"), *strangers)
    assert election.route is not None
    assert election.route.auth == "jwt"
    assert {r.instance for r in election.rejections} == {s.id for s in strangers}


def test_tie_goes_to_the_newest() -> None:
    election = elected(instance("new", index=9, auth="public"), instance("old", index=3))
    assert election.route is not None
    assert election.route.auth == "public"


def test_same_id_on_two_nodes_gives_two_names_that_haproxy_takes() -> None:
    election = elected(
        instance("a" * 100, node="n2", index=5, port=2), instance("a" * 100, node="n1", index=3, port=1)
    )
    assert len(set(names(election))) == 2
    assert {s.port for s in election.servers if s.name == "a" * 100} == {1}
    for name in names(election):
        check_instance_id(name)


def test_bad_service_name_exposes_nothing() -> None:
    election = elect("Users;x", [instance()], POLICY)
    assert election.route is None
    assert not election.servers
    assert election.rejections[0].field == "name"


def make(tmp_path: Path) -> Desire:
    return Desire(POLICY, OwnerBook(tmp_path / "owners.json", 3600))


def test_service_that_has_gone_keeps_a_backend_without_servers(tmp_path: Path) -> None:
    desire = make(tmp_path)
    assert desire.update({"users": [instance()]}, 0)
    assert desire.serving == 1
    desire.update({"users": []}, 1)
    backend = desire.backend("users")
    assert backend is not None
    assert backend.servers == ()
    assert desire.outcome("users") is None
    assert desire.serving == 0


def test_change_of_servers_alone_settles_nothing(tmp_path: Path) -> None:
    desire = make(tmp_path)
    desire.update({"users": [instance()]}, 0)
    assert not desire.update({"users": [instance(), instance("b", port=20002)]}, 1)
    backend = desire.backend("users")
    assert backend is not None
    assert len(backend.servers) == 2


def told(desire: Desire) -> dict[str, object]:
    outcome = desire.outcome("users")
    assert outcome is not None
    return verdict(outcome)


def test_verdict_names_states_and_reasons(tmp_path: Path) -> None:
    desire = make(tmp_path)
    desire.update({"users": [instance()]}, 0)
    assert (told(desire)["state"], told(desire)["paths"]) == ("accepted", ["/api/users"])
    desire.update({"users": [instance(), instance("b", weight="x")]}, 0)
    assert told(desire)["state"] == "partly"
    desire.update({"users": [instance(balance="best")]}, 0)
    assert (told(desire)["state"], told(desire)["accepted"]) == ("rejected", False)
    desire.update({"users": [Instance("users", "a", "n", "127.0.0.1", 1)]}, 0)
    assert told(desire)["state"] == "not-exposed"
