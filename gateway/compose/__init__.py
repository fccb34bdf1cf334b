"""Composed answers: several services' answers as one, as a domain's file declares them.

    <domain>.toml → declaration (checked) → Compositions.find → Composition.answer → fetch (each part) → assemble

`Compositions` is what the pipeline needs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from discovery.clock import SYSTEM_CLOCK, Clock
from gateway.cache import AnswerCache
from gateway.compose.compose import Composition
from gateway.compose.config import Declaration, DeclarationError
from gateway.compose.health import FleetHealth
from gateway.compose.part import Fetcher
from gateway.compose.wholes import Wholes
from gateway.metrics import GatewayMetrics
from gateway.model import Answer, Incoming
from gateway.proxy import Calls
from gateway.routes import Exposed

__all__ = ["Composition", "Compositions", "Declaration", "DeclarationError"]


# Answers a request. See `Composition.answer`, `FleetHealth.answer`.
Answering = Callable[[Incoming], Answer]


class Compositions:
    """What a domain's gateway answers out of several services. Thread-safe."""

    def __init__(
        self,
        declaration: Declaration,
        *,
        calls: Calls,
        view: Exposed,
        cache: AnswerCache,
        metrics: GatewayMetrics,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        fetcher = Fetcher(calls, view, cache, metrics, clock)
        wholes = Wholes(cache, clock)
        self._fixed: dict[str, Answering] = {}
        self._templates: list[Composition] = []
        for route in declaration.route:
            composition = Composition(route, fetcher, wholes, metrics, clock)
            if route.template.names:
                self._templates.append(composition)
            else:
                self._fixed[route.path] = partial(composition.answer, found={})
        if declaration.health is not None:
            self._fixed[declaration.health.path] = FleetHealth(declaration.health, view, clock).answer

    def find(self, incoming: Incoming) -> Answering | None:
        """What answers this path, whatever the method; None when nothing here does."""
        fixed = self._fixed.get(incoming.path)
        if fixed is not None:
            return fixed
        for composition in self._templates:
            values = composition.match(incoming.path)
            if values is not None:
                return partial(composition.answer, found=values)
        return None
