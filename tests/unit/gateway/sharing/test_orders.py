"""What an operator orders, and what the stack lets gateways do in Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis import Redis

from discovery import Instance
from gateway.breakers.news import trip_key
from stack.servers.redis_servers import rules
from tests.support.breaker_process import OPEN_S, SETTINGS, Process, ignored, news, tell, try_all
from tests.support.eventually import eventually
from tests.support.servers import redis

# -- by hand


def test_order_reaches_all_and_holds_against_everything(start: Callable[..., Process], raw: Redis) -> None:
    names = ("gateway-business-m1", "gateway-business-m2")
    one, two = (start(name=name, members=names) for name in names)
    outcome = one.sharing.order("business", one.service, "open", 30, "by root")
    assert (outcome.taken_by, outcome.missing, outcome.shared) == (list(names), [], True)
    for each in (one, two):
        assert each.breaker.status().held
        assert each.history() == [("open", "hand")]
    told = news(one.service)
    tell(raw, told)
    tell(raw, news(one.service, state="closed", of=[told["id"]]))
    eventually(lambda: ignored(two) == 2, 2)
    assert not one.works()
    assert not two.works()
    assert 29 < one.breaker.status().retry_after_s <= 30
    assert start(members=names).breaker.status().held, "a process that starts later holds it as well"
    outcome = two.sharing.order("business", one.service, "closed", 0, "by root")
    assert (outcome.taken_by, one.state, two.state) == (list(names), "closed", "closed")
    assert start(members=names).history() == []


def test_order_for_another_group_leaves_ones_own_alone(start: Callable[..., Process]) -> None:
    members = ("gateway-business-n1",)
    asked, target = start(group="identity"), start(name=members[0], members=members)
    asked.view.replace([Instance("gateway-business", members[0], "node-1", "127.0.0.1", 1)])
    outcome = asked.sharing.order("business", target.service, "open", 30, "by root")
    assert (outcome.taken_by, target.state, asked.state) == ([members[0]], "open", "closed")


def test_after_an_opening_by_hand_one_tries_before_the_others(start: Callable[..., Process]) -> None:
    names = ("gateway-business-p1", "gateway-business-p2")
    one, two = (start(name=name, members=names) for name in names)
    two.sharing.order("business", one.service, "open", 0.3, "by root")
    under_way: list[Any] = []
    passed = try_all([two, one], 0.3 + OPEN_S * 0.7, under_way.append)
    assert passed == [names[0]] * SETTINGS.trials


# -- what Redis' users may


def test_what_the_stack_lets_gateways_do_in_redis_is_enough(start: Callable[..., Process]) -> None:
    with redis() as own, Redis(port=own.port) as admin:
        for group in ("business", "identity"):
            words = f"on >secret {rules(f'gateway-{group}')}".split()
            admin.execute_command("ACL SETUSER", f"gateway-{group}", "reset", *words)
        members = ("gateway-business-q1", "gateway-business-q2")
        one, two = (
            start(on=own, username="gateway-business", name=name, members=members) for name in members
        )
        other = start(on=own, username="gateway-identity", group="identity")
        one.fail()
        eventually(lambda: two.state == "open", 2)
        eventually(lambda: admin.exists(trip_key("business", one.service)), 2)
        other.view.replace([Instance("gateway-business", m, "node-1", "127.0.0.1", 1) for m in members])
        outcome = other.sharing.order("business", one.service, "closed", 0, "by root")
        assert (outcome.taken_by, one.state, two.state) == (list(members), "closed", "closed")
        eventually(lambda: not admin.exists(trip_key("business", one.service)), 2)
        assert not [line for line in admin.acl_log() if line["reason"] != "auth"]


def test_order_heard_again_is_not_carried_out_again(start: Callable[..., Process], raw: Redis) -> None:
    one = start()
    told = news(one.service, who="hand", state="closed", for_ms=10_000)
    tell(raw, told)
    eventually(lambda: one.history() == [("closed", "hand")], 2)
    one.fail()
    tell(raw, told)
    time.sleep(0.2)
    assert one.history() == [("closed", "hand"), ("open", "local")]
