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
            source: answers.labels(source) for source in ("cache", "gateway", "instance", "stale")
        }
        self.clients_gone = Counter(
            "gateway_clients_gone", "Requests whose client left before the answer.", registry=registry
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
            "Changes of a breaker, by the state that it came to and what caused it: local, shared, hand.",
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
            "1 for what caused the present state of a breaker that is not closed: local, shared, hand.",
            ("upstream", "cause"),
            registry=registry,
        )


class ShedMetrics(Collector):
    """How much is under way, of how much, and what was refused: read off the shedder when the metrics are."""

    def __init__(self, registry: CollectorRegistry, shed: Shed) -> None:
        self._shed = shed
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        shed, upstreams = self._shed, self._shed.upstreams()
        for name, (text, attribute) in _OF_UPSTREAMS.items():
            gauge = GaugeMetricFamily(name, text, labels=["upstream"])
            for each in upstreams:
                value = getattr(each, attribute)
                if value is not None:  # not known yet
                    gauge.add_metric([each.service], value)
            yield gauge
        text = "Calls of this process waiting for a head."
        in_flight = GaugeMetricFamily("gateway_group_in_flight", text, labels=["priority"])
        for label, count in zip(("identity", "other"), shed.in_flight(), strict=True):
            in_flight.add_metric([label], count)
        yield in_flight
        text = "Calls of this process that may be under way at once."
        yield GaugeMetricFamily("gateway_group_limit", text, value=shed.settings.group)
        text = "Answers being passed on by this process."
        yield GaugeMetricFamily("gateway_group_streams", text, value=shed.streams())
        text = (
            "Calls refused for want of room, by the bound: group, upstream, group_streams, upstream_streams."
        )
        refused = CounterMetricFamily("gateway_shed", text, labels=["upstream", "scope"])
        for labels, count in shed.refused.items():
            refused.add_metric(labels, count)
        yield refused


# Meaning, and attribute of an upstream.
_OF_UPSTREAMS = {
    "gateway_upstream_limit": ("Calls to an upstream that may be under way at once.", "limit"),
    "gateway_upstream_in_flight": ("Calls waiting for the head of their answer.", "in_flight"),
    "gateway_upstream_streams": ("Answers of an upstream being passed on.", "streams"),
    "gateway_upstream_base_seconds": ("Latency of an upstream with few calls at once.", "base_s"),
}


class LimitMetrics:
    """What the rate limits and quotas of subjects did. `watch` is called with what says whether counts are not shared now."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refused = Counter(
            "gateway_limited", "Requests refused because a limit was used up.", ("policy",), registry=registry
        )
        self._local = Gauge(
            "gateway_limits_local", "1 while limits are not shared: Redis is away.", registry=registry
        )

    def refused(self, policy: str) -> None:
        """`policy` as the headers name it."""
        self._refused.labels(policy).inc()

    def watch(self, away: Callable[[], float]) -> None:
        self._local.set_function(away)


class CacheMetrics:
    """How requests to the cache went, and how it is with Redis. `watch` is called with what says the rest."""

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
            "Requests to the cache: hit, miss, stale (given while a new one is fetched), stale_if_error, bypass (nothing that is "
            "stored); last_good and no_last_good: for a service that could not be asked.",
            ("outcome",),
            registry=registry,
        )
        self._outcomes = {each: outcomes.labels(each) for each in self.OUTCOMES}
        self._bytes = Gauge("gateway_cache_bytes", "Bytes held in the process.", registry=registry)
        self._away = Gauge("gateway_cache_away", "1 while Redis is not used.", registry=registry)

    def count(self, outcome: str) -> None:
        self._outcomes[outcome].inc()

    def watch(self, held_bytes: Callable[[], float], away: Callable[[], bool]) -> None:
        self._bytes.set_function(held_bytes)
        self._away.set_function(away)
