"""The metrics of the gateways, beside the kit's: all declared here, prefix `gateway_`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


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

        self.parts = Counter(
            "gateway_parts",
            "Parts of composed answers, by how they went.",
            ("route", "part", "status"),
            registry=registry,
        )
        self.hedges = Counter(
            "gateway_hedges",
            "Second attempts for a slow part, by which of the two counted.",
            ("service", "winner"),
            registry=registry,
        )

    def answered(self, source: str) -> None:
        """Count an answer by its `source` (see `Answer`)."""
        self._answers[source if source in self._answers else "instance"].inc()


class BreakerMetrics:
    """What becomes of breakers; the state of each is the kit's `service_upstream_breaker`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.transitions = Counter(
            "gateway_breaker_transitions",
            "Changes of a breaker, by the state that it came to and who caused it: local, shared, hand.",
            ("upstream", "state", "cause"),
            registry=registry,
        )
        self.refused = Counter(
            "gateway_breaker_refused",
            "Calls that a breaker did not let through.",
            ("upstream",),
            registry=registry,
        )
        self.news = Counter(
            "gateway_breaker_news",
            "News of breakers: published, taken from other processes, or ignored.",
            ("outcome",),
            registry=registry,
        )
        self.causes = Gauge(
            "gateway_breaker_cause",
            "1 for who caused the present state of a breaker that is not closed: local, shared, hand.",
            ("upstream", "cause"),
            registry=registry,
        )
