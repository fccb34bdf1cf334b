"""Wholes that are kept: for how long, until which change, and made once for all requests that wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import gevent
import pytest

from gateway.compose.result import Result
from gateway.compose.wholes import OVERHEAD_BYTES, Made, Wholes
from gateway.model import Answer
from tests.support.clock import ManualClock

PLACES = [("products", "/api/products/1"), ("users", "/api/users/1")]


@dataclass
class Changes:
    """What the cache tells of changes."""

    changed: list[tuple[str, str]] = field(default_factory=list)
    trusted: bool = True

    def mark(self) -> int:
        return len(self.changed)

    def unchanged(self, places: Sequence[tuple[str, str]], since: int, checked: float) -> bool:
        return self.trusted and not any(each in places for each in self.changed[since:])


@dataclass
class Maker:
    """Makes wholes, and counts them."""

    fresh_s: float = 60.0
    data: bytes = b"{}"
    takes_s: float = 0.0
    error: Exception | None = None
    made: int = 0

    def __call__(self) -> Made:
        self.made += 1
        if self.takes_s:
            gevent.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        result = Result("a", "as", "ok", self.data, "a-1", age_s=3, attempts=2)
        return Made(Answer(200, [("X-Made", str(self.made))]), [result], self.fresh_s, PLACES)


def give(results: Sequence[Result]) -> Answer:
    (result,) = results
    return Answer(
        200,
        [("X-Cache", result.cached or ""), ("Age", str(result.age_s))],
        result.data or b"",
        source="cache",
    )


def get(wholes: Wholes, maker: Maker, key: str = "k", *, renew: bool = False) -> str | None:
    return wholes.get_or_make(key, maker, give, wait_s=5.0, renew=renew).header("x-cache")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_a_whole_is_kept_for_as_long_as_it_is_fresh(clock: ManualClock) -> None:
    wholes, maker = Wholes(Changes(), clock), Maker()
    assert get(wholes, maker) == "MISS"
    clock.sleep(59.5)
    answer = wholes.get_or_make("k", maker, give, wait_s=5.0)
    assert (answer.header("x-cache"), answer.header("age")) == ("HIT", "62")
    clock.sleep(0.5)
    assert [get(wholes, maker), get(wholes, maker)] == ["MISS", "HIT"]
    assert maker.made == 2


def test_what_nobody_else_may_have_is_not_kept(clock: ManualClock) -> None:
    wholes, maker = Wholes(Changes(), clock), Maker(fresh_s=0)
    assert [get(wholes, maker), get(wholes, maker)] == [None, None]
    assert wholes.bytes == 0


def test_a_change_of_a_part_ends_it_and_another_does_not(clock: ManualClock) -> None:
    changes = Changes()
    wholes, maker = Wholes(changes, clock), Maker()
    get(wholes, maker)
    changes.changed.append(("products", "/api/products/2"))
    assert get(wholes, maker) == "HIT"
    changes.changed.append(("users", "/api/users/1"))
    assert [get(wholes, maker), get(wholes, maker)] == ["MISS", "HIT"]


def test_a_change_while_it_is_made_ends_it_too(clock: ManualClock) -> None:
    changes = Changes()
    wholes, maker = Wholes(changes, clock), Maker()

    def make() -> Made:
        made = maker()
        changes.changed.append(PLACES[0])
        return made

    wholes.get_or_make("k", make, give, wait_s=5.0)
    assert get(wholes, maker) == "MISS"


def test_nothing_is_given_while_changes_would_not_be_heard_of(clock: ManualClock) -> None:
    changes = Changes()
    wholes, maker = Wholes(changes, clock), Maker()
    get(wholes, maker)
    changes.trusted = False
    assert get(wholes, maker) == "MISS"


def test_who_asks_for_a_new_one_gets_it_and_the_others_have_it(clock: ManualClock) -> None:
    wholes, maker = Wholes(Changes(), clock), Maker()
    assert [get(wholes, maker), get(wholes, maker, renew=True), get(wholes, maker)] == ["MISS", "MISS", "HIT"]
    assert maker.made == 2


def test_the_least_used_go_when_there_is_no_room(clock: ManualClock) -> None:
    room = 10 * (OVERHEAD_BYTES + 2 + len(repr("0")))
    wholes, maker = Wholes(Changes(), clock, max_bytes=room), Maker()
    for number in range(10):
        get(wholes, maker, str(number))
    assert get(wholes, maker, "0") == "HIT"
    get(wholes, maker, "another")
    assert wholes.bytes <= room
    assert get(wholes, maker, "0") == "HIT"
    assert get(wholes, maker, "1") == "MISS"


def test_one_that_would_take_all_the_room_is_not_kept(clock: ManualClock) -> None:
    wholes = Wholes(Changes(), clock, max_bytes=10_000)
    maker = Maker(data=b"x" * 5000)
    assert [get(wholes, maker), get(wholes, maker)] == ["MISS", "MISS"]
    assert wholes.bytes == 0


def test_names_and_headers_count(clock: ManualClock) -> None:
    wholes, maker = Wholes(Changes(), clock), Maker()
    get(wholes, maker, "k" * 10_000)
    assert wholes.bytes > OVERHEAD_BYTES + 10_000


def test_of_many_who_want_an_outdated_one_a_single_one_makes_it(clock: ManualClock) -> None:
    wholes, maker = Wholes(Changes(), clock), Maker()
    get(wholes, maker)
    clock.sleep(60)
    maker.takes_s = 0.05
    asking = [gevent.spawn(get, wholes, maker) for _ in range(200)]
    gevent.joinall(asking, timeout=5)
    assert sorted(each.value for each in asking) == ["HIT"] * 199 + ["MISS"]
    assert maker.made == 2


def test_who_waits_for_one_that_fails_makes_his_own(clock: ManualClock) -> None:
    wholes, maker = Wholes(Changes(), clock), Maker()
    get(wholes, maker)
    clock.sleep(60)
    failing = Maker(takes_s=0.05, error=ValueError("no"))
    first = gevent.spawn(wholes.get_or_make, "k", failing, give, wait_s=5.0)
    gevent.sleep(0)
    second = gevent.spawn(get, wholes, maker)
    gevent.joinall([first, second], timeout=5)
    assert isinstance(first.exception, ValueError)
    assert (second.successful(), maker.made) == (True, 2)
    assert get(wholes, maker) in ("MISS", "HIT")


def test_who_is_cut_off_while_he_makes_it_keeps_nobody_waiting(clock: ManualClock) -> None:
    wholes, maker = Wholes(Changes(), clock), Maker()
    get(wholes, maker)
    clock.sleep(60)
    first = gevent.spawn(wholes.get_or_make, "k", Maker(takes_s=30), give, wait_s=5.0)
    gevent.sleep(0)
    second = gevent.spawn(get, wholes, maker)
    gevent.sleep(0)
    first.kill()
    second.join(timeout=1)
    assert second.successful()
