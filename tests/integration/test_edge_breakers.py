"""The whole stack: an administrator sees and sets the breakers of all gateways through the edge, and nobody else does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.accounts import Account, ask
from tests.support.eventually import eventually
from tests.support.fleet import Fleet

pytestmark = pytest.mark.needs_stack

GROUPS = ("ai", "business", "identity")


def groups(admin: Account) -> dict[str, Any]:
    reply = admin.ask("GET", "/edge/breakers")
    assert reply.status == 200, reply
    found: dict[str, Any] = json.loads(reply.body)["groups"]
    return found


def test_nobody_but_administrators_gets_near(fleet: Fleet, account: Account) -> None:
    assert ask(fleet.edge_port, "GET", "/edge/breakers").status == 401
    for method, path in (("GET", ""), ("POST", "/business/products"), ("DELETE", "/business/products")):
        reply = account.ask(method, f"/edge/breakers{path}", {"state": "open"} if method == "POST" else None)
        assert reply.status == 403
    assert account.ask("GET", "/edge/status").status == 404


def test_every_gateway_of_every_group_is_shown(fleet: Fleet, admin: Account) -> None:
    wanted = {group: sorted(each.id for each in fleet.instances(f"gateway-{group}")) for group in GROUPS}
    assert all(len(ids) == 2 for ids in wanted.values())

    def shown() -> bool:
        found = groups(admin)
        return {group: sorted(found[group]["instances"]) for group in found} == wanted

    eventually(shown, 10)
    assert all(each["sharing"] for group in groups(admin).values() for each in group["instances"].values())


def test_order_at_the_edge_is_taken_by_a_whole_group_and_taken_back(fleet: Fleet, admin: Account) -> None:
    for group in GROUPS:
        path = f"/edge/breakers/{group}/products"
        wanted = sorted(each.id for each in fleet.instances(f"gateway-{group}"))
        try:
            reply = admin.ask("POST", path, {"state": "open", "for_s": 60, "reason": "a test"})
            said = json.loads(reply.body)
            assert (reply.status, said["taken_by"], said["missing"]) == (200, wanted, [])
            assert reply.headers["x-served-lane"] == "gateway"
            states = [each["breakers"]["products"] for each in groups(admin)[group]["instances"].values()]
            assert [(each["state"], each["who"]) for each in states] == [("open", "hand")] * 2
        finally:
            reply = admin.ask("DELETE", path)
        assert (reply.status, json.loads(reply.body)["taken_by"]) == (200, wanted)
