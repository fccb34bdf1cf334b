"""Breakers of several processes over one real Redis: which opens, which tries, and which closes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from redis import Redis

from discovery import BreakerSettings
from gateway.breakers.news import trip_key, trips_channel
from tests.support.breaker_process import OPEN_S, SETTINGS, Process, try_all
from tests.support.eventually import eventually

# -- opening together


def test_what_is_heard_is_not_published_again(start: Callable[..., Process], raw: Redis) -> None:
    one, two, three = start(), start(), start()
    with raw.pubsub() as listener:
        listener.subscribe(trips_channel("business"))
        assert listener.get_message(timeout=2) is not None
        one.fail()
        eventually(lambda: two.state == three.state == "open", 2)
        time.sleep(0.3)
        origins = []
        while message := listener.get_message(timeout=0.1):
            origins.append(json.loads(message["data"])["origin"])
    assert origins == [one.name]
    assert one.history() == [("open", "local")], "its own news does not come back to it"


def test_groups_do_not_hear_of_each_other(start: Callable[..., Process]) -> None:
    one, same, other = start(), start(), start(group="identity")
    one.fail()
    eventually(lambda: same.state == "open", 2)
    time.sleep(0.1)
    assert other.state == "closed"


# -- trying again


def test_trials_are_those_of_one_process(start: Callable[..., Process]) -> None:
    processes = [start() for _ in range(3)]
    processes[1].fail()
    eventually(lambda: all(each.state == "open" for each in processes), 2)
    # Trials that do not end, for as long as the others wait: 1 to 2 times OPEN_S after the trip.
    under_way: list[Any] = []
    passed = try_all(processes, OPEN_S * 1.7, under_way.append)
    assert passed == [processes[1].name] * SETTINGS.trials


def test_failed_trial_of_one_keeps_all_waiting(start: Callable[..., Process]) -> None:
    processes = [start() for _ in range(3)]
    processes[0].fail()
    eventually(lambda: all(each.state == "open" for each in processes), 2)
    passed = try_all(processes, OPEN_S * 2.4, lambda permit: permit.failed("status 503"))
    assert set(passed) == {processes[0].name}
    assert len(passed) == 2


def test_all_close_when_one_has_found_it_well(start: Callable[..., Process]) -> None:
    one, *others = (start() for _ in range(3))
    one.fail()
    eventually(lambda: all(each.state == "open" for each in others), 2)
    eventually(lambda: one.works() and one.state == "closed", 3)
    eventually(lambda: all(each.state == "closed" for each in others), 0.5)
    assert [each.history() for each in others] == [[("open", "shared"), ("closed", "shared")]] * 2


def test_others_try_themselves_when_the_one_is_gone(start: Callable[..., Process]) -> None:
    one, two = start(), start()
    one.fail()
    eventually(lambda: two.state == "open", 2)
    one.sharing.stop()
    eventually(lambda: two.works() and two.state == "closed", 2 * OPEN_S + 2)
    assert two.history() == [("open", "shared"), ("half-open", "local"), ("closed", "local")]


def trip_at_once(*processes: Process) -> bool:
    """Whether they have all tripped by themselves: the news of the first may be faster than the last one's failure."""
    for each in processes:
        each.breaker.change("closed", who="hand", reason="again")
    permits = [each.breaker.enter() for each in processes for _ in range(SETTINGS.min_calls)]
    for permit in permits:
        permit.failed("status 503")
    return all(each.history()[-1] == ("open", "local") for each in processes)


def test_of_two_that_trip_at_once_one_tries(start: Callable[..., Process]) -> None:
    one, two = start(name="gateway-business-a"), start(name="gateway-business-b")
    eventually(lambda: trip_at_once(one, two), 5)
    eventually(lambda: two.breaker.status().retry_after_s > OPEN_S, 1)
    assert one.breaker.status().retry_after_s <= OPEN_S
    assert set(try_all([two, one], OPEN_S * 1.5, lambda permit: permit.succeeded())[:2]) == {one.name}
    eventually(lambda: one.state == two.state == "closed", 1)


# -- a later start


def test_process_that_starts_later_learns_what_is_open(start: Callable[..., Process], raw: Redis) -> None:
    slow = BreakerSettings(min_calls=4, open_s=30)
    one = start(settings=slow)
    one.fail()
    key = trip_key("business", one.service)
    eventually(lambda: raw.exists(key), 2)
    assert 0 < raw.pttl(key) <= 30_000
    late = start(settings=slow)
    assert late.history() == [("open", "shared")]
    assert 29 < late.breaker.status().retry_after_s <= 60


def test_key_is_gone_when_it_has_closed(start: Callable[..., Process], raw: Redis) -> None:
    one = start()
    one.fail()
    key = trip_key("business", one.service)
    eventually(lambda: raw.exists(key), 2)
    eventually(lambda: one.works() and one.state == "closed", 3)
    eventually(lambda: not raw.exists(key), 1)
    assert start().state == "closed"
