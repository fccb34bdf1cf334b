"""The rules of blocking queries, one turn at a time."""

from __future__ import annotations

import pytest

from discovery.consul.watch import TokenBucket, Turn, Watch, backoff_s
from discovery.errors import ConsulMalformed, ConsulUnreachable
from tests.support.clock import ManualClock


class Script:
    """Answers asks from a list: an index with the answer "a", or an error. Remembers what was asked."""

    def __init__(self, *answers: int | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[int] = []
        self.turns: list[Turn] = []
        self.errors = 0

    def fetch(self, index: int, wait_s: float) -> tuple[int, str]:
        self.asked.append(index)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer, "a"

    def watch(self, clock: ManualClock) -> Watch[str]:
        return Watch("t", self.fetch, lambda _, turn: self.turns.append(turn), self._error, clock=clock)

    def _error(self, error: Exception) -> None:
        self.errors += 1


def run(script: Script, clock: ManualClock | None = None, between_s: float = 0.0) -> list[float]:
    clock = clock or ManualClock()
    watch = script.watch(clock)
    pauses = []
    while script.answers:
        pauses.append(watch.step())
        clock.sleep(between_s)
    return pauses


def test_waits_on_the_index_of_the_last_answer() -> None:
    script = Script(5, 7, 7)
    run(script)
    assert script.asked == [0, 5, 7]
    assert script.turns == ["moved", "moved", "same"]


def test_lower_index_restarts_from_zero() -> None:
    script = Script(50, 3, 4)
    run(script)
    assert script.asked == [0, 50, 0]
    assert script.turns == ["moved", "reset", "moved"]


def test_index_zero_is_never_waited_on() -> None:
    script = Script(0, 1)
    run(script)
    assert script.asked == [0, 1]


def test_error_asks_again_from_zero_and_still_notices_a_reset() -> None:
    script = Script(50, ConsulUnreachable("x"), 3)
    run(script)
    assert script.asked == [0, 50, 0]
    assert script.turns == ["moved", "reset"]
    assert script.errors == 1


def test_long_failure_is_told_as_rejoined_and_a_short_one_is_not() -> None:
    long, short = Script(5, ConsulUnreachable("x"), 6), Script(5, ConsulUnreachable("x"), 6)
    run(long, between_s=1.5)
    run(short, between_s=0.1)
    assert long.turns == ["moved", "rejoined"]
    assert short.turns == ["moved", "moved"]


def test_errors_back_off_with_full_jitter_under_a_bound() -> None:
    clock = ManualClock(chance=1.0)
    pauses = run(Script(*[ConsulUnreachable("x")] * 10), clock)
    assert pauses[:3] == [0.2, 0.4, 0.8]
    assert max(pauses) == 5.0
    clock.chance = 0.0
    assert backoff_s(3, clock) == 0.0


def test_refused_answer_counts_as_an_error() -> None:
    def refuse(answer: str, turn: Turn) -> None:
        raise ConsulMalformed("not believed")

    script = Script(5)
    errors: list[Exception] = []
    watch = Watch("t", script.fetch, refuse, errors.append, clock=ManualClock())
    assert watch.step() > 0
    assert len(errors) == 1


def test_bug_in_a_callback_does_not_end_the_watch() -> None:
    def broken(answer: str, turn: Turn) -> None:
        raise RuntimeError("bug")

    script = Script(5, 6)
    watch = Watch("t", script.fetch, broken, lambda _: None, clock=ManualClock())
    watch.step()
    watch.step()
    assert script.asked == [0, 0]


def test_stopped_watch_calls_nothing_any_more() -> None:
    script = Script(5)
    watch = script.watch(ManualClock())
    watch.stop()
    watch.step()
    assert script.turns == []


def test_bucket_allows_a_burst_and_then_its_rate() -> None:
    clock = ManualClock()
    bucket = TokenBucket(rate_per_s=10, burst=5, clock=clock)
    assert [bucket.take() for _ in range(5)] == [0.0] * 5
    assert bucket.take() == pytest.approx(0.1)
    assert bucket.take() == pytest.approx(0.2)
    clock.sleep(10)
    assert bucket.take(5) == 0.0
