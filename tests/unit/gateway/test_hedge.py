"""Hedges: when there is a second attempt, which of two counts, and what becomes of the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import gevent
import pytest

from gateway.compose.hedge import Outcome, hedged

LONG_S = 5.0
SHORT_S = 0.02


@dataclass
class Script:
    """Attempts by number: how long each takes, and what it answers or raises. `cut` are those that were cut off."""

    steps: list[tuple[float, object]]
    begun: int = 0
    cut: list[int] = field(default_factory=list)
    asked: int = 0
    grants: bool = True

    def attempt(self) -> object:
        number = self.begun
        self.begun += 1
        seconds, answer = self.steps[number]
        try:
            gevent.sleep(seconds)
        except BaseException:
            self.cut.append(number)
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def may(self) -> bool:
        self.asked += 1
        return self.grants

    def run(
        self, delay_s: float = SHORT_S, good: Callable[[object], bool] = lambda value: value != "bad"
    ) -> Outcome[object]:
        return hedged(self.attempt, delay_s=delay_s, may=self.may, good=good)


def test_a_quick_answer_is_not_hedged() -> None:
    script = Script([(0, "first")])
    assert script.run(delay_s=LONG_S) == Outcome("first")
    assert (script.begun, script.asked) == (1, 0)


def test_a_quick_failure_is_not_hedged() -> None:
    script = Script([(0, ValueError("no"))])
    with pytest.raises(ValueError, match="no"):
        script.run(delay_s=LONG_S)
    assert (script.begun, script.asked) == (1, 0)


def test_a_slow_first_loses_to_the_second_and_is_cut_off() -> None:
    script = Script([(LONG_S, "first"), (0, "second")])
    began = time.monotonic()
    assert script.run() == Outcome("second", hedged=True, won=True)
    assert time.monotonic() - began < LONG_S / 2
    gevent.sleep(0)
    assert script.cut == [0]


def test_a_first_that_still_wins_cuts_off_the_second() -> None:
    script = Script([(SHORT_S * 3, "first"), (LONG_S, "second")])
    assert script.run() == Outcome("first", hedged=True, won=False)
    gevent.sleep(0)
    assert script.cut == [1]


def test_without_leave_there_is_no_second() -> None:
    script = Script([(SHORT_S * 3, "first")], grants=False)
    assert script.run() == Outcome("first")
    assert (script.begun, script.asked) == (1, 1)


@pytest.mark.parametrize("loser", ["bad", ValueError("no")])
def test_an_attempt_that_ends_badly_waits_for_the_other(loser: object) -> None:
    first_bad = Script([(SHORT_S * 2, loser), (SHORT_S * 4, "second")])
    assert first_bad.run().value == "second"
    second_bad = Script([(SHORT_S * 4, "first"), (0, loser)])
    assert second_bad.run().value == "first"
    assert first_bad.cut == second_bad.cut == []


def test_of_two_that_end_badly_an_answer_counts_more_than_an_error() -> None:
    for steps in ([(SHORT_S * 2, "bad"), (SHORT_S, ValueError())], [(SHORT_S * 2, ValueError()), (0, "bad")]):
        assert Script(list(steps)).run().value == "bad"


def test_two_errors_raise_one() -> None:
    with pytest.raises(ValueError, match="one"):
        Script([(SHORT_S * 2, ValueError("one")), (SHORT_S * 4, ValueError("two"))]).run()


def test_a_caller_that_is_cut_off_leaves_no_attempt_behind() -> None:
    script = Script([(LONG_S, "first"), (LONG_S, "second")])
    caller = gevent.spawn(script.run)
    gevent.sleep(SHORT_S * 5)
    assert script.begun == 2
    caller.kill()
    gevent.sleep(0)
    assert sorted(script.cut) == [0, 1]
