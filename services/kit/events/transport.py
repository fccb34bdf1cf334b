"""What a broker is to the kit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event as the broker gave it: `handle` is how it is acknowledged.

    `replays` names the dead letter that it comes back from. No publisher may be able to set it.
    """

    producer: str
    handle: str
    body: bytes
    replays: str = ""


@dataclass(frozen=True, slots=True)
class Dead:
    """An event that a service gave up. `at` is ISO 8601 in UTC; `handle` stays the same for as long as it is kept."""

    handle: str
    at: str
    reason: str
    body: bytes


class Transport(Protocol):
    """Methods raise Away where the broker cannot be reached, or does not do what is asked; nothing is lost by that."""

    def publish(self, producer: str, bodies: Sequence[str]) -> None:
        """Returns once the broker has all of them, in this sequence. Some may have arrived where it raises."""
        ...

    def tidy(self, producer: str) -> None:
        """Let go of what every consuming service has acknowledged."""
        ...

    def receive(
        self, service: str, wanted: Mapping[str, Sequence[str]], limit: int, wait_s: float
    ) -> list[Delivery]:
        """What is next for the service, of each producer in sequence: of one that another instance follows, nothing.

        `wanted` are producers and their types; others may come as well.

        What was received and not acknowledged comes again after `again`, to this instance or to another.
        """
        ...

    def acknowledge(self, service: str, deliveries: Sequence[Delivery]) -> None: ...

    def again(self) -> None:
        """Deliver anew what was received and is not acknowledged."""
        ...

    def release(self, service: str) -> None:
        """Leave what this instance follows to others. Raises nothing."""
        ...

    def bury(self, service: str, body: bytes, reason: str) -> None:
        """Keep an event that the service gave up."""
        ...

    def dead(self, service: str, limit: int) -> list[Dead]:
        """The oldest of those kept; none where the service is unknown."""
        ...

    def replay(self, service: str, dead: Dead) -> None:
        """Deliver it again, to this service alone, with its handle in `replays`. It is kept until the service has it safe."""
        ...

    def forget_dead(self, service: str, handles: Sequence[str]) -> None:
        """Keep them no longer. What is gone already is passed over."""
        ...
