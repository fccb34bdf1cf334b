"""What is not believed, and what happens without Redis."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable

import pytest
from redis import Redis

from discovery import BreakerSettings, Instance
from discovery.loop import Loop
from gateway.breakers.news import MAX_PICTURE_BYTES, hand_key, picture_key, trip_key, trips_channel
from gateway.redis_link import TIMEOUT_S, RedisLink
from services.kit.redis_client import connect
from tests.support.breaker_process import OPEN_S, Process, ignored, names, news, tell
from tests.support.eventually import eventually, time_scale
from tests.support.servers import RedisServer, redis

# -- what is not believed


def test_news_heard_before_does_not_open_what_has_closed(start: Callable[..., Process], raw: Redis) -> None:
    one = start()
    told = news(one.service, for_ms=60_000)
    tell(raw, told)
    eventually(lambda: one.state == "open", 2)
    tell(raw, news(one.service, state="closed", of=[told["id"]]))
    eventually(lambda: one.state == "closed", 2)
    tell(raw, told)
    time.sleep(0.2)
    assert one.history() == [("open", "shared"), ("closed", "shared")]


def test_news_older_than_the_last_closing_does_not_open_it(start: Callable[..., Process], raw: Redis) -> None:
    one = start()
    before_ms = int(time.time() * 1000) - 1
    one.fail()
    eventually(lambda: one.works() and one.state == "closed", 3)
    tell(raw, news(one.service, at_ms=before_ms, for_ms=60_000))
    eventually(lambda: ignored(one) == 1, 2)
    assert one.state == "closed"
    tell(raw, news(one.service))
    eventually(lambda: one.state == "open", 2)


def test_news_that_has_run_out_changes_nothing(start: Callable[..., Process], raw: Redis) -> None:
    one = start()
    tell(raw, news(one.service, at_ms=int(time.time() * 1000) - 5000, for_ms=4000))
    eventually(lambda: ignored(one) == 1, 2)
    assert one.history() == []


def test_closing_of_another_trip_closes_nothing(start: Callable[..., Process], raw: Redis) -> None:
    one = start()
    one.fail()
    tell(raw, news(one.service, state="closed", of=["stranger/1/other"]))
    eventually(lambda: ignored(one) == 1, 2)
    assert one.state == "open"


def test_clock_far_ahead_opens_for_no_longer_than_ours_does(
    start: Callable[..., Process], raw: Redis
) -> None:
    one = start()
    tell(raw, news(one.service, at_ms=int(time.time() * 1000) + 3_600_000, for_ms=86_400_000))
    eventually(lambda: one.state == "open", 2)
    assert one.breaker.status().retry_after_s <= 2 * OPEN_S


HOSTILE: dict[str, Callable[[str], bytes]] = {
    "nothing": lambda s: b"",
    "no JSON": lambda s: b"open!",
    "no UTF-8": lambda s: b"\xff\xfe{}",
    "another shape": lambda s: b"[]",
    "no members": lambda s: b"{}",
    "a number as service": lambda s: json.dumps(news(1)).encode(),
    "a service of nobody": lambda s: json.dumps(news("nobody")).encode(),
    "a gateway as service": lambda s: json.dumps(news("gateway-business")).encode(),
    "a service that is no name": lambda s: json.dumps(news("../users")).encode(),
    "an unknown state": lambda s: json.dumps(news(s, state="ajar")).encode(),
    "an order among trips": lambda s: json.dumps(news(s, who="hand")).encode(),
    "a time below zero": lambda s: json.dumps(news(s, for_ms=-1)).encode(),
    "a time without end": lambda s: json.dumps(news(s, for_ms=10**12)).encode(),
    "a time as text": lambda s: json.dumps(news(s, for_ms="1000")).encode(),
    "a time that is none": lambda s: json.dumps(news(s, at_ms=float("nan"))).encode(),
    "a time of many digits": lambda s: (
        json.dumps(news(s)).replace('"for_ms": 1000', '"for_ms": ' + "9" * 3000).encode()
    ),
    "an id that ends a line": lambda s: json.dumps(news(s, id="x\ny")).encode(),
    "too many trips": lambda s: json.dumps(news(s, state="closed", of=["x"] * 9)).encode(),
    "too deep": lambda s: b"[" * 4000,
    "too long": lambda s: json.dumps(news(s, more="x" * 5000)).encode(),
}


def test_what_is_no_news_is_ignored(start: Callable[..., Process], raw: Redis) -> None:
    one = start()
    for count, (what, make) in enumerate(HOSTILE.items(), 1):
        assert raw.publish(trips_channel("business"), make(one.service)) >= 1
        eventually(lambda count=count: ignored(one) == count, 2)
        assert one.state == "closed", what
    assert set(one.client.breakers()) <= {one.service}, "strangers' names take no room"
    tell(raw, news(one.service))
    eventually(lambda: one.state == "open", 2)


def test_broken_values_of_keys_are_ignored(start: Callable[..., Process], raw: Redis) -> None:
    service = f"plums-{next(names)}"
    raw.lpush(trip_key("business", service), "a list")
    raw.set(hand_key("business", service), b"\x00" * 1_000_000)
    stranger = "gateway-business-stranger"
    raw.set(picture_key("business", stranger), json.dumps({"instance": "another"}))
    one = start(service=service, members=(stranger,))
    assert one.state == "closed"
    members, reached = one.sharing.members(["business"])
    assert (reached, members["business"][stranger]) == (True, None)
    two = start(service=service)
    two.fail()
    eventually(lambda: one.state == "open", 2)


def test_picture_under_another_ones_name_is_ignored(start: Callable[..., Process], raw: Redis) -> None:
    one = start(members=("gateway-business-x",))
    eventually(lambda: raw.exists(picture_key("business", one.name)), 3)
    raw.set(picture_key("business", "gateway-business-x"), raw.get(picture_key("business", one.name)))
    assert one.sharing.members(["business"])[0]["business"]["gateway-business-x"] is None


def test_what_goes_wrong_with_one_news_does_not_end_the_listening(server: RedisServer) -> None:
    link = RedisLink(connect(server.url, None, timeout_s=TIMEOUT_S, connections=4))
    heard: list[bytes] = []
    begun = threading.Semaphore(0)

    def hear(_: str, data: bytes) -> None:
        heard.append(data)
        raise RuntimeError("a mistake of ours")

    def follow() -> float:
        link.follow("channel", until=lambda: loop.stopped, begun=begun.release, heard=hear)
        return 0.0

    loop = Loop("listener", follow)
    loop.start()
    try:
        with Redis(port=server.port) as raw:
            for number in (1, 2):
                assert begun.acquire(timeout=5)
                raw.publish("channel", str(number))
                eventually(lambda number=number: heard[-1:] == [b"%d" % number], 5)
    finally:
        loop.stop()
        loop.join(5)


def test_picture_of_thousands_of_services_can_still_be_read(start: Callable[..., Process]) -> None:
    names = ("gateway-business-r1", "gateway-business-r2")
    one, two = (start(name=name, members=names) for name in names)
    many = [Instance(f"service-{n}", f"s-{n}", "node-1", "127.0.0.1", 1) for n in range(2500)]
    known = [each for group in one.view.snapshot().services.values() for each in group]
    one.view.replace([*known, *many])
    for each in many:
        one.client.breaker(each.service)
    assert len(one.sharing.picture().model_dump_json()) > MAX_PICTURE_BYTES
    one.fail()

    def seen() -> bool:
        picture = two.sharing.members(["business"])[0]["business"][one.name]
        return picture is not None and {one.service: "open"} == {
            service: each.state for service, each in picture.breakers.items()
        }

    eventually(seen, 5)


# -- without Redis


def quick(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def test_with_redis_hung_both_break_alone_and_no_call_waits(start: Callable[..., Process]) -> None:
    with redis() as own:
        one, two = start(on=own), start(on=own)
        own.process.signal(signal.SIGSTOP)
        time.sleep(0.2)
        assert quick(one.fail) < 0.2 * time_scale()
        assert one.state == "open"
        time.sleep(0.2)
        assert two.state == "closed", "the fault did not happen"
        assert quick(two.fail) < 0.2 * time_scale()
        assert two.state == "open"
        own.process.signal(signal.SIGCONT)
        eventually(lambda: one.sharing.hearing and two.sharing.hearing, 10)
        eventually(lambda: one.works() and one.state == "closed", 3 * OPEN_S + 2)
        eventually(lambda: two.works() and two.state == "closed", 3 * OPEN_S + 2)
        one.fail()
        eventually(lambda: two.state == "open", 2)


def test_trip_that_redis_missed_is_published_when_it_is_back(start: Callable[..., Process]) -> None:
    slow = BreakerSettings(min_calls=4, open_s=30)
    with redis() as own:
        one, two = start(on=own, settings=slow), start(on=own, settings=slow)
        own.kill()
        one.fail()
        time.sleep(0.3)
        assert two.state == "closed"
        own.start()
        eventually(lambda: two.state == "open", 10)


def test_without_any_redis_it_breaks_alone_and_starts_nothing(start: Callable[..., Process]) -> None:
    before = set(threading.enumerate())
    alone = start(on=None, wait=False)
    alone.fail()
    assert alone.state == "open"
    assert set(threading.enumerate()) <= before
    members, reached = alone.sharing.members(["business"])
    assert (list(members["business"]), reached) == ([alone.name], False)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_redis_that_stores_nothing_still_passes_on(start: Callable[..., Process], fault: str) -> None:
    with redis(args=("--maxmemory-policy", "noeviction")) as own, Redis(port=own.port) as admin:
        one, two = start(on=own), start(on=own)
        if fault == "full":
            admin.config_set("maxmemory", "1")
        else:
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            eventually(lambda: one.sharing.hearing and two.sharing.hearing, 5)
        with pytest.raises(Exception, match="maxmemory|read only"):
            admin.set("x", "y")
        one.fail()
        eventually(lambda: two.state == "open", 2)
