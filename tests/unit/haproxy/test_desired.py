"""From instances to servers, routes and rejections."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from discovery.admission.rules import admit
from discovery.contract import Policy, check_instance_name
from discovery.model import Instance, Status
from haproxy.controller.consul.verdicts import verdict
from haproxy.controller.wanted.election import Desire, Election, elect
from haproxy.controller.wanted.ownership import OwnerBook
from tests.support.clock import ManualClock

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
    return elect(admit("users", instances, POLICY))


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
        ("edge-idle", {"idle": "0"}),
        ("edge-upgrade", {"upgrade": "h2c"}),
        ("address", {"address": "unix@/tmp/x"}),
        ("address", {"address": "10.0.0.1"}),
        ("port", {"port": 8500}),
        ("id", {"id_": "x\ny"}),
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
    strangers = [instance(f"x\n{n}", index=9, auth="public") for n in range(3)]
    election = elected(instance("a"), *strangers)
    assert election.route is not None
    assert election.route.auth == "jwt"
    assert {r.instance for r in election.rejections} == {s.id for s in strangers}


def test_tie_goes_to_the_newest() -> None:
    election = elected(instance("new", index=9, auth="public"), instance("old", index=3))
    assert election.route is not None
    assert election.route.auth == "public"


def test_same_id_on_two_nodes_gives_two_names_that_haproxy_takes() -> None:
    election = elected(instance("a", node="n2", index=5, port=2), instance("a", node="n1", index=3, port=1))
    assert len(set(names(election))) == 2
    assert {s.port for s in election.servers if s.name == "a"} == {1}
    for name in names(election):
        check_instance_name(name)


def test_ids_that_haproxy_cannot_take_get_names_that_differ() -> None:
    election = elected(
        *(instance(id_) for id_ in ("host:app:1", "host/app/1", "host app 1", "_x", "y" * 128))
    )
    assert not election.rejections
    assert len(set(names(election))) == 5
    for name in names(election):
        check_instance_name(name)


def test_bad_service_name_exposes_nothing() -> None:
    election = elect(admit("Users;x", [instance()], POLICY))
    assert election.route is None
    assert not election.servers
    assert election.rejections[0].field == "name"


def make(tmp_path: Path, clock: ManualClock | None = None) -> Desire:
    return Desire(POLICY, OwnerBook(tmp_path / "owners.json", 3600), clock or ManualClock())


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


def told(desire: Desire, service: str = "users") -> dict[str, object]:
    outcome = desire.outcome(service)
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


@pytest.fixture(name="desire")
def desire_fixture(tmp_path: Path) -> Desire:
    return make(tmp_path)


def at(service: str, id_: str, port: int, index: int, status: Status = "passing", **meta: str) -> Instance:
    given = {f"edge-{key.replace('_', '-')}": value for key, value in meta.items()}
    asked = {"edge-path": f"/api/{service}", **given}
    return Instance(service, id_, "n1", "127.0.0.1", port, status, False, asked, index)


def rejected(desire: Desire, service: str) -> list[tuple[str, str, str]]:
    outcome = desire.outcome(service)
    return [] if outcome is None else [(r.instance, r.field, r.reason) for r in outcome.election.rejections]


def serving(desire: Desire, service: str) -> set[str]:
    return set(desire.servers(service))


def test_unchecked_instance_does_not_live_where_another_service_was_first(desire: Desire) -> None:
    squatter = at("evil", "evil-1", 20001, 2, check_identity="off")
    own = at("evil", "evil-2", 20002, 3, check_identity="off")
    desire.update({"users": [instance("users-1")], "evil": [squatter, own]}, 0)
    assert serving(desire, "users") == {"users-1"}
    assert serving(desire, "evil") == {"evil-2"}
    assert rejected(desire, "evil") == [
        ("evil-1", "address", "127.0.0.1:20001 is held by users, which had it first: not served")
    ]
    told = verdict(desire.outcome("evil"))  # type: ignore[arg-type]
    assert told["state"] == "partly"
    assert told["rejected_instances"][0]["id"] == "evil-1"


def test_first_at_an_address_and_port_keeps_it_whoever_comes_later(desire: Desire) -> None:
    """A foreign program is not driven out by somebody who registers on its port."""
    nginx = at("docs", "docs-1", 20001, 1, check_identity="off")
    desire.update({"docs": [nginx]}, 0)
    later = [at("evil", "evil-1", 20001, 2), at("bad", "bad-1", 20001, 3, check_identity="off")]
    desire.update({"evil": later[:1], "bad": later[1:]}, 1)
    assert serving(desire, "docs") == {"docs-1"}
    assert serving(desire, "bad") == set()
    # HAProxy would take it for up until its first check, so it is the gateways' to ask for its name.
    assert serving(desire, "evil") == set()
    assert told(desire, "evil")["state"] == "partly"
    assert told(desire, "evil")["rejected_instances"] == []


def test_checked_instance_at_a_squatted_place_is_left_to_the_gateways(desire: Desire) -> None:
    squatter = at("evil", "evil-1", 20001, 1, check_identity="off")
    desire.update({"evil": [squatter]}, 0)
    desire.update({"users": [instance("users-1", index=2)]}, 1)
    admission = admit("users", [instance("users-1", index=2)], POLICY, lambda place, *, left: "evil")
    assert [(each.name, each.identity, each.direct) for each in admission.admitted] == [
        ("users-1", "/health/ready", False)
    ]
    assert serving(desire, "users") == set()


def test_checked_instance_may_use_a_port_that_another_has_just_left(desire: Desire) -> None:
    desire.update({"docs": [at("docs", "docs-1", 20001, 1)]}, 0)
    desire.update({"docs": [], "users": [instance("users-1", index=2)]}, 1)
    assert serving(desire, "users") == {"users-1"}


def test_gateway_is_not_kept_out_by_a_squatter(desire: Desire) -> None:
    desire.update({"evil": [at("evil", "evil-1", 20001, 1)]}, 0)
    desire.update({"gateway-ai": [at("gateway-ai", "gateway-ai-1", 20001, 2)]}, 1)
    assert serving(desire, "gateway-ai") == {"gateway-ai-1"}


def test_majority_does_not_hide_a_squatter_that_asks_for_the_check(desire: Desire) -> None:
    evil = [
        at("evil", "evil-1", 20001, 4),
        at("evil", "evil-2", 20002, 5, check_identity="off"),
        at("evil", "evil-3", 20003, 6, check_identity="off"),
    ]
    desire.update({"users": [instance("users-1")], "evil": evil}, 0)
    assert serving(desire, "evil") == {"evil-2", "evil-3"}


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_another_spelling_of_the_address_is_the_same_place(desire: Desire, address: str) -> None:
    meta = {"edge-path": "/api/evil", "edge-check-identity": "off"}
    squatter = Instance("evil", "evil-1", "n1", address, 20001, "passing", False, meta, 2)
    desire.update({"users": [instance("users-1")], "evil": [squatter]}, 0)
    assert serving(desire, "evil") == set()


def test_port_of_a_dead_registration_is_free_until_it_lives_again(desire: Desire) -> None:
    follower = at("docs", "docs-1", 20001, 2, check_identity="off")
    instances = {"users": [instance("users-1", status="critical")], "docs": [follower]}
    desire.update(instances, 0)
    assert serving(desire, "docs") == {"docs-1"}
    back = {"users": [instance("users-1")]}
    beside = desire.neighbours(back)
    assert beside == {"docs"}
    desire.update(back | {name: instances[name] for name in beside}, 1)
    assert serving(desire, "docs") == set()


@pytest.mark.parametrize("out", [[], [at("docs", "docs-1", 20001, 1, "critical", check_identity="off")]])
def test_place_is_held_while_a_program_restarts_and_no_longer(tmp_path: Path, out: list[Instance]) -> None:
    clock = ManualClock()
    desire = make(tmp_path, clock)
    squatter = at("evil", "evil-1", 20001, 2, check_identity="off")
    desire.update({"docs": [at("docs", "docs-1", 20001, 1, check_identity="off")]}, 0)
    desire.update({"docs": out, "evil": [squatter]}, 1)
    clock.sleep(59)
    assert not desire.released()
    assert serving(desire, "evil") == set()
    # It registers anew, later than the other: it was there first all the same.
    desire.update({"docs": [at("docs", "docs-1", 20001, 9, check_identity="off")], "evil": [squatter]}, 2)
    assert serving(desire, "docs") == {"docs-1"}
    assert serving(desire, "evil") == set()
    desire.update({"docs": out, "evil": [squatter]}, 3)
    clock.sleep(61)
    assert desire.released() == {"evil"}
    desire.update({"evil": [squatter]}, 4)
    assert serving(desire, "evil") == {"evil-1"}


def test_service_that_is_not_exposed_holds_its_place_as_well(desire: Desire) -> None:
    inner = Instance("inference", "inference-1", "n1", "127.0.0.1", 20001, "passing", False, {}, 1)
    desire.update({"inference": [inner], "evil": [at("evil", "e", 20001, 2, check_identity="off")]}, 0)
    assert serving(desire, "evil") == set()


def test_instances_of_one_service_may_follow_each_other_on_a_port(desire: Desire) -> None:
    both = [at("docs", f"docs-{n}", 20001, n, check_identity="off") for n in (1, 2)]
    desire.update({"docs": both}, 0)
    assert serving(desire, "docs") == {"docs-1", "docs-2"}
