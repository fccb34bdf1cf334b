"""The metrics of the gateways, beside the kit's: all declared here, prefix `gateway_`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.limits.loadshed import Shed


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


class ShedMetrics(Collector):
    """How much is under way, of how much, and what was refused: read off the shedder when somebody asks for it."""

    def __init__(self, registry: CollectorRegistry, shed: Shed) -> None:
        self._shed = shed
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        limits = GaugeMetricFamily(
            "gateway_upstream_limit",
            "Calls to an upstream that may be under way at once.",
            labels=["upstream"],
        )
        calls = GaugeMetricFamily(
            "gateway_upstream_in_flight", "Calls waiting for the head of their answer.", labels=["upstream"]
        )
        streams = GaugeMetricFamily(
            "gateway_upstream_streams", "Answers of an upstream being passed on.", labels=["upstream"]
        )
        bases = GaugeMetricFamily(
            "gateway_upstream_base_seconds",
            "Latency of an upstream with few calls at once.",
            labels=["upstream"],
        )
        for state in self._shed.states():
            labels = [state.service]
            limits.add_metric(labels, state.limit)
            calls.add_metric(labels, state.in_flight)
            streams.add_metric(labels, state.streams)
            if state.base_s is not None:
                bases.add_metric(labels, state.base_s)
        yield from (limits, calls, streams, bases, *self._group(), self._refused())

    def _group(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "gateway_group_limit",
            "Calls of this process that may be under way at once.",
            value=self._shed.settings.group,
        )
        calls = GaugeMetricFamily(
            "gateway_group_in_flight", "Calls of this process waiting for a head.", labels=["priority"]
        )
        for priority, count in zip(("identity", "other"), self._shed.in_flight(), strict=True):
            calls.add_metric([priority], count)
        yield calls
        yield GaugeMetricFamily(
            "gateway_group_streams", "Answers being passed on by this process.", value=self._shed.streams()
        )

    def _refused(self) -> CounterMetricFamily:
        refused = CounterMetricFamily(
            "gateway_shed",
            "Calls refused for want of room, by the bound: group, upstream, group_streams, upstream_streams.",
            labels=["upstream", "scope"],
        )
        for (service, scope), count in self._shed.refused().items():
            refused.add_metric([service, scope], count)
        return refused


class LimitMetrics:
    """What the rate limits and quotas of subjects did."""

    def __init__(self, registry: CollectorRegistry, away: Callable[[], bool]) -> None:
        """`away` tells whether counts are not shared now."""
        self._refused = Counter(
            "gateway_limited", "Requests refused because a limit was used up.", ("policy",), registry=registry
        )
        local = Gauge(
            "gateway_limits_local", "1 while limits are not shared: Redis is away.", registry=registry
        )
        local.set_function(lambda: float(away()))

    def refused(self, policy: str) -> None:
        """`policy` as the headers name it."""
        self._refused.labels(policy).inc()


class CacheMetrics:
    """How requests to the cache went, and how it is with Redis. `watch` is called with what tells the rest."""

    OUTCOMES = (
        "hit",
        "miss",
        "stale",
        "stale_if_error",
        "bypass",
        "last_good",
        "no_last_good",
    )

    def __init__(self, registry: CollectorRegistry) -> None:
        outcomes = Counter(
            "gateway_cache",
            "Requests to the cache: hit, miss, stale (given while asked for anew), stale_if_error, bypass (nothing that is "
            "stored); last_good and no_last_good: for a service that could not be asked.",
            ("outcome",),
            registry=registry,
        )
        self._outcomes = {each: outcomes.labels(each) for each in self.OUTCOMES}
        self._bytes = Gauge("gateway_cache_bytes", "Bytes held in the process.", registry=registry)
        self._away = Gauge("gateway_cache_away", "1 while Redis is left alone.", registry=registry)

    def count(self, outcome: str) -> None:
        self._outcomes[outcome].inc()

    def watch(self, held_bytes: Callable[[], float], away: Callable[[], bool]) -> None:
        self._bytes.set_function(held_bytes)
        self._away.set_function(away)
