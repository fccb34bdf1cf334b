"""What runs for ever outlives what its turns meet, and says so once."""

from __future__ import annotations

import structlog

from discovery.loop import Loop
from tests.support.eventually import eventually


class Turns:
    """Raises what is `wrong`, else asks to be called again soon."""

    def __init__(self) -> None:
        self.wrong: Exception | None = None
        self.count = 0
        self.pause_s = 0.001

    def __call__(self) -> float:
        self.count += 1
        if self.wrong is not None:
            raise self.wrong
        return self.pause_s


class Hasty:
    """A clock whose backoff is nothing."""

    monotonic = time = staticmethod(lambda: 0.0)

    def sleep(self, seconds: float) -> None:
        pass

    def random(self) -> float:
        return 0.001


def test_loop_outlives_every_exception_and_says_so_once_a_change() -> None:
    turns = Turns()
    loop = Loop("cuckoo", turns, clock=Hasty())
    with structlog.testing.capture_logs() as lines:
        loop.start()
        try:
            for wrong in (RecursionError("deep"), MemoryError(), OSError(24, "too many files")):
                turns.wrong, before = wrong, turns.count
                eventually(lambda before=before: turns.count > before + 3 and loop.failing, 5)  # type: ignore[misc]
                turns.wrong = None
                eventually(lambda: not loop.failing, 5)
        finally:
            loop.stop()
            loop.join(5)
    assert [line["event"] for line in lines] == ["loop failed", "loop recovered"] * 3
    assert {line["loop"] for line in lines} == {"cuckoo"}


def test_a_log_that_cannot_be_written_ends_no_loop() -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "no space left on device")

    turns = Turns()
    turns.wrong = ValueError("x")
    old = structlog.get_config()["processors"]
    structlog.configure(processors=[broken])
    try:
        loop = Loop("cuckoo", turns, clock=Hasty())
        loop.start()
        eventually(lambda: turns.count > 3, 5)
        loop.stop()
        loop.join(5)
    finally:
        structlog.configure(processors=old)


def test_stop_ends_a_pause_at_once() -> None:
    turns = Turns()
    turns.pause_s = 3600.0
    loop = Loop("cuckoo", turns)
    loop.start()
    eventually(lambda: turns.count == 1, 5)
    loop.hurry()
    eventually(lambda: turns.count == 2, 5)
    loop.stop()
    loop.join(5)
    assert turns.count == 2
