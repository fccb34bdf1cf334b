"""The metrics of the gateways, beside the kit's: all declared here, prefix `gateway_`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class GatewayMetrics:
    """Labels come from small fixed sets, and services of the catalog."""

    def __init__(self, registry: CollectorRegistry) -> None:
        answers = Counter(
            "gateway_answers", "Answers, by where they came from.", ("source",), registry=registry
        )
        self._answers = {
            source: answers.labels(source) for source in ("cache", "gateway", "instance", "snapshot")
        }
        self.clients_gone = Counter(
            "gateway_clients_gone", "Requests whose sender left before the answer.", registry=registry
        )

    def answered(self, source: str) -> None:
        """Count an answer by its `source` (see `Answer`)."""
        self._answers[source if source in self._answers else "instance"].inc()
