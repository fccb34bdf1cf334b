"""A clock that stands still until the test moves it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ManualClock:
    """`discovery.clock.Clock` owned by a test. `sleep` moves it; `random` answers `chance`."""

    now: float = 1_800_000_000.0
    chance: float = 0.5

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def random(self) -> float:
        return self.chance
