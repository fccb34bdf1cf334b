"""The whole stack: an administrator sees and sets the breakers of all gateways through the edge, and nobody else does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.accounts import Account, ask
from tests.support.eventually import eventually
from tests.support.fleet import Fleet
from tests.support.wire import Reply

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
            order = {"state": "open", "for_s": 60, "reason": "a test"}
            # 202 where a process had not said so within a second, on a busy machine: the same order again does no harm.
            reply = eventually(lambda: taken(admin.ask("POST", path, order), wanted), 10)  # noqa: B023
            assert reply.headers["x-served-lane"] == "gateway"
            eventually(lambda: by_hand(admin, group) == [("open", "hand")] * 2, 5)  # noqa: B023
        finally:
            eventually(lambda: taken(admin.ask("DELETE", path), wanted), 10)  # noqa: B023


def by_hand(admin: Account, group: str) -> list[tuple[str, str]]:
    """State of the breaker for products, and who is to blame for it, at each gateway of a group that answered in time."""
    states = [each["breakers"]["products"] for each in groups(admin)[group]["instances"].values()]
    return [(each["state"], each["who"]) for each in states]


def taken(reply: Reply, wanted: list[str]) -> Reply | None:
    """The answer to an order that all of `wanted` have taken; None when some have not said so yet."""
    said = json.loads(reply.body)
    assert reply.status in (200, 202, 503), reply
    if reply.status == 503:
        return None  # nobody has: Redis did not answer in time
    assert set(said["taken_by"]) | set(said["missing"]) == set(wanted), reply
    return reply if (reply.status, said["missing"]) == (200, []) else None
