"""What fails in a thread shows where readiness is asked for, and is said once."""

from __future__ import annotations

from structlog.testing import capture_logs

from haproxy.controller.loop.steady import Health, steady, survives


def test_loop_that_fails_shows_until_a_turn_ends_well() -> None:
    health, fails = Health(), [True, True, False]

    def turn() -> float:
        if fails.pop(0):
            raise MemoryError("odd")
        return 5.0

    loop = steady("work", turn, health)
    with capture_logs() as logs:
        loop.turn()
        loop.turn()
        assert health.problems() == {"work": "odd"}
        assert loop.turn() == 5.0
    assert not health.problems()
    assert [line["event"] for line in logs] == ["loop failed", "works again", "loop recovered"]


def test_work_that_fails_in_the_same_way_is_told_once_and_in_another_again() -> None:
    health = Health()
    errors = iter([ValueError("a"), ValueError("a"), OSError("b")])

    def work() -> None:
        raise next(errors)

    with capture_logs() as logs:
        assert [survives("work", work, health) for _ in range(3)] == [False] * 3
        assert survives("work", lambda: None, health)
    assert [line["event"] for line in logs] == ["failed, goes on"] * 2 + ["works again"]
