"""Which calls get a ticket, and which requests a place: bounds, priority, streams, and what counts as one holder."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from structlog.testing import capture_logs

from gateway.errors import Overloaded
from gateway.limits.concurrency import ConcurrencySettings
from gateway.limits.loadshed import QUIET_S, Places, Shed, ShedSettings, Ticket, source
from gateway.settings import GatewaySettings
from tests.support.clock import ManualClock


def shed(clock: ManualClock | None = None, **values: object) -> Shed:
    limits = ConcurrencySettings(minimum=4, initial=8, maximum=16)
    settings: dict[str, object] = {"group": 20, "reserved": 0.25, "streams": 20, "upstream_streams": 6}
    return Shed(ShedSettings(**(settings | {"upstream": limits} | values)), clock or ManualClock())  # type: ignore[arg-type]


def fill(one: Shed, service: str, *, priority: bool = False) -> list[Ticket]:
    """Every ticket that is to be had."""
    tickets: list[Ticket] = []
    while len(tickets) < 1000:
        try:
            tickets.append(one.enter(service, priority=priority))
        except Overloaded:
            return tickets
    raise AssertionError("no bound")


def refusal(one: Shed, service: str, *, priority: bool = False) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        one.enter(service, priority=priority)
    return caught.value


def no_stream(one: Shed, service: str) -> Overloaded:
    """How a stream is refused, whose head has come."""
    ticket = one.enter(service, priority=False)
    with pytest.raises(Overloaded) as caught:
        ticket.head()
    return caught.value


def in_flight(one: Shed) -> int:
    return sum(one.in_flight())


def test_upstream_is_full_at_its_limit_and_others_are_not() -> None:
    one = shed()
    tickets = fill(one, "slow")
    assert len(tickets) == 8
    error = refusal(one, "slow")
    assert (error.service, error.scope) == ("slow", "upstream")
    one.enter("fast", priority=False).leave()
    tickets[0].leave()
    one.enter("slow", priority=False).leave()


def test_group_is_full_whatever_the_upstream() -> None:
    one = shed(reserved=0.0)
    held = [fill(one, name) for name in ("a", "b", "c")]
    assert [len(tickets) for tickets in held] == [8, 8, 4]
    assert refusal(one, "d").scope == "group"


def test_share_of_the_group_is_for_priority_alone() -> None:
    one = shed()
    ordinary = [ticket for name in ("a", "b", "c") for ticket in fill(one, name)]
    assert len(ordinary) == 15
    assert refusal(one, "d").scope == "group"
    preferred = fill(one, "users", priority=True)
    assert len(preferred) == 5
    assert refusal(one, "auth", priority=True).scope == "group"
    for ticket in ordinary:
        ticket.leave()
    # What is free is for priority too, up to the upstream's own limit.
    assert len(fill(one, "auth", priority=True)) == 8


def test_refused_calls_take_no_place() -> None:
    one = shed()
    held = fill(one, "slow")
    for _ in range(50):
        refusal(one, "slow")
    assert in_flight(one) == len(held)
    for ticket in held:
        ticket.leave()
    assert in_flight(one) == 0
    assert len(fill(one, "slow")) == 8


def test_leaving_twice_gives_one_place_back() -> None:
    one = shed()
    first, second = one.enter("a", priority=False), one.enter("a", priority=False)
    for _ in range(3):
        first.leave()
        first.head()
    assert in_flight(one) == 1
    second.leave()
    assert in_flight(one) == 0
    assert one.streams() == 0


def test_stream_gives_its_call_back_at_the_head_and_has_a_bound_of_its_own() -> None:
    one = shed()
    streams = []
    for _ in range(6):
        ticket = one.enter("chat", priority=False)
        ticket.head()
        streams.append(ticket)
    assert in_flight(one) == 0
    assert one.streams() == 6
    refused = no_stream(one, "chat")
    assert (refused.scope, refused.sent) == ("upstream", True)
    assert one.refused == {("chat", "upstream_streams"): 1}
    assert (in_flight(one), one.streams()) == (0, 6)
    # A call that is no stream has its place all the same.
    one.enter("chat", priority=False).leave()
    one.enter("other", priority=False).head()
    streams[0].leave()
    one.enter("chat", priority=False).head()
    for ticket in streams:
        ticket.leave()
    assert one.streams() == 0


def test_streams_of_all_services_have_a_bound_with_a_share_for_priority() -> None:
    one = shed(streams=8)
    held = []
    for number in range(6):
        ticket = one.enter(f"chat-{number}", priority=False)
        ticket.head()
        held.append(ticket)
    assert no_stream(one, "chat-9").scope == "group"
    assert one.refused == {("chat-9", "group_streams"): 1}
    one.enter("chat-9", priority=False).leave()
    one.enter("users", priority=True).head()
    held[0].leave()
    one.enter("chat-9", priority=False).head()


def test_long_stream_is_no_latency() -> None:
    clock = ManualClock()
    one = shed(clock, streams=100, upstream_streams=100)
    for _ in range(200):
        tickets = fill(one, "chat")
        clock.sleep(0.02)
        for ticket in tickets:
            ticket.head()
        clock.sleep(60)
        for ticket in tickets:
            ticket.leave()
    (state,) = one.upstreams()
    assert state.base_s == pytest.approx(0.02)
    assert state.limit >= 8


def test_queue_cuts_the_limit_of_its_own_upstream_alone() -> None:
    clock = ManualClock()
    one = shed(clock, group=40)
    for _ in range(20):
        ticket = one.enter("slow", priority=False)
        clock.sleep(0.1)
        ticket.leave()
    for _ in range(40):
        queue = fill(one, "slow")
        ticket = one.enter("fast", priority=False)
        clock.sleep(0.02)
        ticket.leave()
        # One by one: the last in the queue waits for all before it.
        for ticket in queue:
            clock.sleep(0.1)
            ticket.leave()
    limits = {state.service: state.limit for state in one.upstreams()}
    assert limits["fast"] == 8
    assert 4 <= limits["slow"] <= 6


def test_retry_after_is_spread_over_whole_seconds() -> None:
    clock = ManualClock()
    one = shed(clock)
    held = fill(one, "slow")
    after = set()
    for step in range(100):
        clock.chance = step / 100
        after.add(refusal(one, "slow").retry_after_s)
    assert after == {1, 2, 3}
    assert held


def test_forgotten_ticket_gives_its_place_back() -> None:
    one = shed()
    fill(one, "a")
    stream = one.enter("b", priority=False)
    stream.head()
    del stream
    gc.collect()
    assert in_flight(one) == 0
    assert one.streams() == 0


def test_overload_is_logged_when_it_begins_now_and_then_while_it_lasts_and_when_it_is_over() -> None:
    clock = ManualClock()
    one = shed(clock)
    with capture_logs() as logs:
        held = fill(one, "slow")
        for _ in range(100):  # 25 s, and four refusals a second
            refusal(one, "slow")
            clock.sleep(0.25)
        for ticket in held:
            ticket.leave()
        one.enter("slow", priority=False).leave()  # it may be back at once
        clock.sleep(QUIET_S)
        for _ in range(3):
            one.enter("slow", priority=False).leave()
        fill(one, "slow")
    lines = [(each["event"], each["refused"], each["for_s"]) for each in logs]
    assert lines == [
        ("shedding", 1, 0.0),
        ("shedding", 42, 10.0),
        ("shedding", 82, 20.0),
        ("shedding over", 101, 24.8),
        ("shedding", 1, 0.0),
    ]
    assert {(each["service"], each.get("scope", "upstream")) for each in logs} == {("slow", "upstream")}


def test_idle_services_are_forgotten_when_there_are_too_many() -> None:
    one = shed()
    held = one.enter("kept", priority=False)
    for number in range(3000):
        one.enter(f"pears-{number}", priority=False).leave()
    assert len(one.upstreams()) <= 1001
    assert any(state.service == "kept" for state in one.upstreams())
    held.leave()


def test_bounds_hold_under_threads() -> None:
    one = Shed(ShedSettings(group=10, reserved=0.0))
    most = 0
    lock = threading.Lock()
    inside = 0

    def work() -> None:
        nonlocal most, inside
        for _ in range(300):
            try:
                ticket = one.enter("a", priority=False)
            except Overloaded:
                continue
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0)
            with lock:
                inside -= 1
            ticket.leave()

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert 0 < most <= 10
    assert in_flight(one) == 0


def test_settings_are_brought_in_where_they_contradict_each_other() -> None:
    given = GatewaySettings(
        gateway_upstream_min=50, gateway_upstream_initial=10, gateway_upstream_max=20
    ).shed()
    assert (given.upstream.minimum, given.upstream.initial, given.upstream.maximum) == (50, 50, 50)
    usual = GatewaySettings().shed()
    # One service alone must not be able to fill the group.
    assert usual.upstream.maximum < usual.group * (1 - usual.reserved)


# -- places


def test_bounds_hold_and_what_is_left_can_be_had_again() -> None:
    places = Places(3, 2)
    first, second = places.take("a"), places.take("a")
    assert first is not None
    assert second is not None
    assert places.take("a") is None
    assert places.take("b") is not None
    assert places.take("c") is None, "all are taken"
    first.leave()
    first.leave()
    assert places.taken == 2
    assert places.take("a") is not None
    assert places.take("a") is None


def test_nothing_is_remembered_of_holders_that_have_left() -> None:
    places = Places(None, 1)
    for number in range(100):
        place = places.take(str(number))
        assert place is not None
        place.leave()
    assert places.holders == {}


@pytest.mark.parametrize(
    ("address", "holder"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("no:address", "no:address"),
    ],
)
def test_a_customer_of_ipv6_is_one_holder(address: str, holder: str) -> None:
    assert source(address) == holder
