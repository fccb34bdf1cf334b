"""From instances to servers, routes and rejections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from discovery.contract import Policy, check_instance_name
from discovery.model import Instance, Route
from haproxy.controller.consul.verdicts import verdict
from haproxy.controller.wanted.election import Desire
from haproxy.controller.wanted.ownership import OwnerBook
from tests.support.clock import ManualClock

POLICY = Policy(control_ports=frozenset({8500}))


def at(service: str = "users", number: int = 1, port: int = 0, index: int = 1, **given: Any) -> Instance:
    """Instance `<service>-<number>`; `given` are fields of it, or metadata."""
    fields = {
        name: given.pop(name) for name in ("id", "node", "address", "status", "maintenance") if name in given
    }
    meta = {"edge-path": f"/api/{service}", **{f"edge-{k.replace('_', '-')}": v for k, v in given.items()}}
    named = {"id": f"{service}-{number}", "node": "n1", "address": "127.0.0.1", "status": "passing"} | fields
    return Instance(
        service, port=port or 20000 + number, meta=meta, create_index=index, **{"maintenance": False} | named
    )


class Edge:
    """The desired state of one edge, and the words for what is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.desire = Desire(POLICY, OwnerBook(folder / "owners.json", 3600), self.clock)

    def bring(self, *instances: Instance, gone: tuple[str, ...] = ()) -> bool:
        """All instances of these services; answers whether their claims have changed."""
        services: dict[str, list[Instance]] = {name: [] for name in gone}
        for instance in instances:
            services.setdefault(instance.service, []).append(instance)
        changed = self.desire.update(services)
        self.desire.settle()
        return changed

    def serving(self, service: str = "users") -> list[str]:
        return list(self.desire.servers(service))

    def verdict(self, service: str = "users") -> dict[str, Any]:
        outcome = self.desire.outcome(service)
        assert outcome is not None
        return verdict(outcome)

    def rejected(self, service: str = "users") -> list[tuple[str, str, bool]]:
        outcome = self.desire.outcome(service)
        assert outcome is not None
        return [(r.instance, r.field, r.fatal) for r in outcome.admission.rejections]

    def route(self) -> Route:
        return self.desire.routes()["users"]


@pytest.fixture
def edge(tmp_path: Path) -> Edge:
    return Edge(tmp_path)


def test_warning_is_skipped_where_the_route_says_so(edge: Edge) -> None:
    edge.bring(at(warning="skip"), at(number=2, status="warning", warning="skip"))
    assert edge.serving() == ["users-1"]


def test_majority_decides_the_route_and_the_others_learn_it(edge: Edge) -> None:
    edge.bring(at(), at(number=2), at(number=3, index=9, auth="public"))
    assert edge.route().auth == "jwt"
    assert edge.serving() == ["users-1", "users-2", "users-3"]
    assert edge.rejected() == [("users-3", "edge-path", False)]


def test_instances_that_may_not_serve_have_no_vote(edge: Edge) -> None:
    edge.bring(at(), *(at(id=f"x\n{n}", index=9, auth="public") for n in range(3)))
    assert edge.route().auth == "jwt"
    assert len(edge.rejected()) == 3


def test_tie_goes_to_the_newest(edge: Edge) -> None:
    edge.bring(at(index=9, auth="public"), at(number=2, index=3))
    assert edge.route().auth == "public"


def test_same_id_on_two_nodes_gives_two_names(edge: Edge) -> None:
    edge.bring(at(node="n2", index=5, port=2), at(node="n1", index=3, port=1))
    servers = edge.desire.servers("users")
    assert len(servers) == 2
    assert servers["users-1"].port == 1, "the older registration keeps it"
    for name in servers:
        check_instance_name(name)


def test_service_that_has_gone_keeps_a_backend_without_servers(edge: Edge) -> None:
    assert edge.bring(at())
    assert edge.desire.serving == 1
    edge.bring(gone=("users",))
    backend = edge.desire.backend("users")
    assert backend is not None
    assert backend.servers == ()
    assert edge.desire.outcome("users") is None
    assert edge.desire.serving == 0


def test_change_of_servers_alone_changes_no_claim(edge: Edge) -> None:
    edge.bring(at())
    assert not edge.bring(at(), at(number=2))
    backend = edge.desire.backend("users")
    assert backend is not None
    assert len(backend.servers) == 2


def test_verdict_names_states_and_reasons(edge: Edge) -> None:
    edge.bring(at())
    assert (edge.verdict()["state"], edge.verdict()["paths"]) == ("accepted", ["/api/users"])
    edge.bring(at(), at(number=2, weight="x"))
    assert edge.verdict()["state"] == "partly"
    edge.bring(at(balance="best"))
    assert (edge.verdict()["state"], edge.verdict()["accepted"]) == ("rejected", False)
    edge.bring(Instance("users", "a", "n", "127.0.0.1", 1))
    assert edge.verdict()["state"] == "not-exposed"


def test_first_at_an_address_and_port_keeps_it_whichever_comes_later(edge: Edge) -> None:
    """A foreign program is not driven out by a service that registers on its port."""
    edge.bring(at("docs", check_identity="off"))
    edge.bring(at("evil", index=2), at("bad", index=3, check_identity="off"))
    assert edge.serving("docs") == ["docs-1"]
    assert edge.serving("bad") == []
    # HAProxy would take it for up until its first check, so it is the gateways' to ask for its name.
    assert edge.serving("evil") == []
    assert edge.verdict("evil")["state"] == "partly"
    assert edge.verdict("evil")["rejected_instances"] == []
    outcome = edge.desire.outcome("evil")
    assert outcome is not None
    assert [(a.identity, a.direct) for a in outcome.admission.admitted] == [("/health/ready", False)]


def test_checked_instance_may_use_a_port_that_another_has_just_left(edge: Edge) -> None:
    edge.bring(at("docs"))
    edge.bring(at(index=2), gone=("docs",))
    assert edge.serving() == ["users-1"]


def test_gateway_is_not_kept_out_by_a_squatter(edge: Edge) -> None:
    edge.bring(at("evil"))
    edge.bring(at("gateway-ai", index=2))
    assert edge.serving("gateway-ai") == ["gateway-ai-1"]


def test_majority_does_not_hide_a_squatter_that_asks_for_the_check(edge: Edge) -> None:
    edge.bring(at(), at("evil", index=4), *(at("evil", n, index=5, check_identity="off") for n in (2, 3)))
    assert edge.serving("evil") == ["evil-2", "evil-3"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_another_spelling_of_the_address_is_the_same_place(edge: Edge, address: str) -> None:
    edge.bring(at(), at("evil", index=2, address=address, check_identity="off"))
    assert edge.serving("evil") == []


def test_port_of_a_dead_registration_is_free_until_it_lives_again(edge: Edge) -> None:
    follower = at("docs", index=2, check_identity="off")
    edge.bring(at(status="critical"), follower)
    assert edge.serving("docs") == ["docs-1"]
    assert edge.desire.neighbours({"users": [at()]}) == {"docs"}
    edge.bring(at(), follower)
    assert edge.serving("docs") == []


@pytest.mark.parametrize("out", [[], [at("docs", status="critical", check_identity="off")]])
def test_place_is_held_while_a_program_restarts_and_no_longer(edge: Edge, out: list[Instance]) -> None:
    squatter = at("evil", index=2, check_identity="off")
    edge.bring(at("docs", check_identity="off"))
    edge.bring(*out, squatter, gone=("docs",))
    edge.clock.sleep(59)
    assert not edge.desire.released()
    assert edge.serving("evil") == []
    # It registers anew, later than the other: it was there first all the same.
    edge.bring(at("docs", index=9, check_identity="off"), squatter)
    assert edge.serving("docs") == ["docs-1"]
    assert edge.serving("evil") == []
    edge.bring(*out, squatter, gone=("docs",))
    edge.clock.sleep(61)
    assert edge.desire.released() == {"evil"}
    edge.bring(squatter)
    assert edge.serving("evil") == ["evil-1"]


def test_service_that_is_not_exposed_holds_its_place_as_well(edge: Edge) -> None:
    edge.bring(Instance("inference", "inference-1", "n1", "127.0.0.1", 20001, "passing", False, {}, 1))
    edge.bring(at("evil", index=2, check_identity="off"))
    assert edge.serving("evil") == []


def test_instances_of_one_service_may_follow_each_other_on_a_port(edge: Edge) -> None:
    edge.bring(*(at("docs", n, port=20001, index=n, check_identity="off") for n in (1, 2)))
    assert edge.serving("docs") == ["docs-1", "docs-2"]
