"""A clock that a test owns."""

from __future__ import annotations


class FakeClock:
    """Time stands still until `advance` or `sleep`; `random` answers with `luck`."""

    def __init__(self, luck: float = 0.5) -> None:
        self.now = 1000.0
        self.luck = luck
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1_700_000_000.0 + self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def random(self) -> float:
        return self.luck

    def advance(self, seconds: float) -> None:
        self.now += seconds
