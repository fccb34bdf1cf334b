"""Composed answers: several services' answers as one, as a domain's file declares them.

    <domain>.toml → declaration (checked) → Compositions.find → Composition.answer → fetch (each part) → assemble

`Compositions` is what the pipeline needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul.static import Reading
from gateway.cache import AnswerCache
from gateway.compose.compose import Composition
from gateway.compose.config import Declaration, DeclarationError
from gateway.compose.part import Fetcher
from gateway.compose.wholes import Wholes
from gateway.health import FleetHealth
from gateway.metrics import GatewayMetrics
from gateway.model import Answer, Incoming
from gateway.proxy import Calls

__all__ = ["Composition", "Compositions", "Declaration", "DeclarationError"]


@dataclass(frozen=True, slots=True)
class Found:
    """A composition, and what its placeholders stand for in this path."""

    composition: Composition
    values: Mapping[str, str]

    def answer(self, incoming: Incoming) -> Answer:
        """See `Composition.answer`."""
        return self.composition.answer(incoming, self.values)


class Compositions:
    """What a domain's gateway answers out of several services. Thread-safe."""

    def __init__(
        self,
        declaration: Declaration,
        *,
        calls: Calls,
        view: Reading,
        cache: AnswerCache | None = None,
        metrics: GatewayMetrics | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        fetcher = Fetcher(calls, view, cache, metrics, clock)
        wholes = Wholes(cache, clock)
        self._fixed: dict[str, Found | FleetHealth] = {}
        self._templates: list[Composition] = []
        for route in declaration.route:
            composition = Composition(route, fetcher, wholes, metrics, clock)
            if route.template.names:
                self._templates.append(composition)
            else:
                self._fixed[route.path] = Found(composition, {})
        if declaration.health is not None:
            self._fixed[declaration.health.path] = FleetHealth(declaration.health, view, clock)

    def find(self, incoming: Incoming) -> Found | FleetHealth | None:
        """What answers this path, whatever the method; None when nothing here does."""
        fixed = self._fixed.get(incoming.path)
        if fixed is not None:
            return fixed
        for composition in self._templates:
            values = composition.match(incoming.path)
            if values is not None:
                return Found(composition, values)
        return None
