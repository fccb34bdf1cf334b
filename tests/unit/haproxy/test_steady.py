"""What runs for ever goes on after any exception, says so once, and shows in what is asked for readiness."""

from __future__ import annotations

import threading

from structlog.testing import capture_logs

from haproxy.controller import steady
from haproxy.controller.steady import Health, Steady
from tests.support.eventually import eventually


def test_thread_outlives_what_its_work_raises_and_shows_it() -> None:
    health, failing, turns = Health(), threading.Event(), []
    failing.set()

    def turn() -> None:
        turns.append(1)
        if failing.is_set():
            raise MemoryError("odd")
        thread.wait(0.01)

    thread = Steady("work", turn, health)
    steady.PAUSE_S, pause_s = 0.01, steady.PAUSE_S
    try:
        with capture_logs() as logs:
            thread.start()
            eventually(lambda: len(turns) > 3, 5)
            assert health.problems() == {"work": "odd"}
            assert [line["event"] for line in logs] == ["failed, goes on"]
            failing.clear()
            eventually(lambda: not health.problems(), 5)
            eventually(lambda: logs[-1]["event"] == "works again", 5)
    finally:
        steady.PAUSE_S = pause_s
        thread.stop()
        thread.join(5)
