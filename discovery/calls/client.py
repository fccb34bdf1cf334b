"""ServiceClient: a call by service name, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from discovery.balancing.ejection import Identity
from discovery.calls.guard import Attempt, Call, Guard
from discovery.calls.instrumentation import Observer
from discovery.calls.request import DEADLINE_HEADER, Body, Lines, Query, outgoing, target
from discovery.calls.upstream import ClientSettings
from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul.static import Reading
from discovery.http.headers import field_line
from discovery.http.response import Finish, Response
from discovery.http.transport import HttpTransport, Outgoing, Place
from discovery.model import Balance, Instance, Snapshot
from discovery.resilience.breaker import Breaker, BreakerStatus
from discovery.resilience.patience import Patience

# How long a short answer that pauses is waited for before what there is of it is passed on.
GATHER_S = 1.0


class Transport(Protocol):
    """What a client sends by: one attempt on one instance (see `HttpTransport.send`), and the places it keeps connections to."""

    def send(
        self,
        outgoing: Outgoing,
        instance: Instance,
        *,
        added: bytes,
        timeout_s: float,
        read_timeout_s: float,
        max_bytes: int,
        finish: Finish | None,
    ) -> Response: ...

    def places(self) -> Collection[Place]: ...

    def drop(self, places: Iterable[Place]) -> None: ...


@dataclass(frozen=True, slots=True)
class Relay:
    """How another client's request is passed on, its answer streamed.

    The head is waited for `head_s` in each attempt, a body that has begun may be silent for `idle_s`. An answer that says it has
    at most `whole_bytes` is had whole before it is returned, if it comes without a pause. `host` is the Host that was asked for.
    `both_ways`: a body that is an iterator may still be coming when its answer has begun.
    """

    head_s: float
    idle_s: float
    whole_bytes: int = 0
    host: str | None = None
    both_ways: bool = False


class ServiceClient:
    """Calls services by name, over the instances of a view. Thread-safe, and works under gevent.

    `token_source` gives the bearer token for requests that carry no Authorization of their own, within the seconds it is called
    with; `observer` hears of every call and attempt.
    """

    def __init__(
        self,
        view: Reading,
        *,
        settings: ClientSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        token_source: Callable[[float], str | None] | None = None,
        observer: Observer | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._settings = settings or ClientSettings()
        self._clock = clock
        self._token_source = token_source
        self._transport = transport or HttpTransport(
            connect_timeout_s=self._settings.connect_timeout_s,
            connections=self._settings.connections,
            clock=clock,
        )
        # The transport and not this client is bound: a circle of references would hold connections past its end.
        on_catalog = partial(_drop_gone, self._transport)
        self.guard = Guard(view, self._settings, clock, observer or Observer(), on_catalog)

    def breakers(self) -> dict[str, BreakerStatus]:
        """The breaker of every service called so far."""
        return {
            service: upstream.breaker.status() for service, upstream in list(self.guard.upstreams.items())
        }

    def breaker_state(self, service: str) -> str:
        """`closed`, `open` or `half-open`; a service that was never called has nothing against it."""
        upstream = self.guard.upstreams.get(service)
        return upstream.breaker.state if upstream is not None else "closed"

    def breaker(self, service: str) -> Breaker:
        """The service's breaker, made now if it was never called. It is kept: ask for services that there are."""
        return self.guard.upstream(service).breaker

    def latency_s(self, service: str, quantile: float = 0.95) -> float | None:
        """What that share of the service's last good attempts took; None while too few are known. A streamed one counts to its head."""
        upstream = self.guard.upstreams.get(service)
        return upstream.latencies.quantile(quantile) if upstream else None

    def spend_retry(self, service: str) -> bool:
        """Take one attempt more out of the service's retry budget, for a hedge; False when it is spent."""
        return self.guard.upstream(service).budget.spend()

    def request(
        self,
        method: str,
        service: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: Query | None = None,
        body: Body = None,
        json: Any = None,
        deadline_s: float | None = None,
        usual_s: float | None = None,
        stream: bool = False,
        relay: Relay | None = None,
        balance: Balance | None = None,
        source_key: str | None = None,
        request_id: str | None = None,
        traceparent: str | None = None,
        places: set[Identity] | None = None,
        max_body_bytes: int | None = None,
    ) -> Response:
        """Call a service and return its answer, whatever its status; 502, 503 and 504 after the retries that are allowed.

        `deadline_s` covers all attempts and travels on as `X-Deadline-Ms`; when streaming, until the head of the answer. `usual_s`
        is what such a call is given where there is time. `balance` overrides the service's own `edge-balance`; `source_key` is
        what `source` and `uri` go by, and its failures alone open no breaker while others succeed. `places` learns where each
        attempt goes, and what is in it is called only when nothing else is left: several calls may share one. Raises CallError;
        ValueError for a request that could not be sent.
        """
        began = self._clock.monotonic()
        lines = Lines(headers or {}, (("X-Request-ID", request_id), ("traceparent", traceparent)))
        host = relay.host if relay else None
        sent = outgoing(method, service, target(path, query), lines, body, json, host)
        sent.both_ways = relay is not None and relay.both_ways
        until = began + (self._settings.deadline_s if deadline_s is None else deadline_s)
        call = Call(service, sent.method, began, until, self._patience(usual_s, relay), sent.twice, stream)
        call.balance, call.key, call.replayable = balance, source_key, sent.replayable
        if places is not None:
            call.places = places
        if "authorization" not in lines.names:
            call.prepare = partial(self._authorize, sent)
        return self.guard.run(call, partial(self._send, sent, relay, max_body_bytes))

    def _patience(self, usual_s: float | None, relay: Relay | None) -> Patience:
        settings = self._settings
        if relay is not None:
            return Patience(relay.head_s, relay.head_s, settings.patience_s, shares=False)
        return Patience(settings.attempt_timeout_s, usual_s or 0.0, settings.patience_s, shares=True)

    def _authorize(self, sent: Outgoing, left_s: float) -> None:
        token = self._token_source(left_s) if self._token_source is not None else None
        if token:
            sent.fields += field_line("Authorization", f"Bearer {token}").encode("latin-1")

    def _send(self, sent: Outgoing, relay: Relay | None, max_bytes: int | None, attempt: Attempt) -> Response:
        """One attempt, with as much of the body as belongs to it: all, or of a streamed one what is short enough."""
        stream, until = attempt.call.stream, attempt.call.until
        idle_s = self._settings.stream_idle_s if stream else attempt.timeout_s
        response = self._transport.send(
            sent,
            attempt.instance,
            added=b"%b: %d\r\n" % (DEADLINE_HEADER.encode(), max(1, int(attempt.left_s * 1000))),
            timeout_s=attempt.timeout_s,
            read_timeout_s=idle_s if relay is None else relay.idle_s,
            max_bytes=self._settings.max_body_bytes if max_bytes is None else max_bytes,
            finish=attempt.finish if stream else None,
        )
        if not stream:
            response.read_whole(until)
        elif relay is not None:
            response.gather(relay.whole_bytes, min(until, self._clock.monotonic() + GATHER_S))
        return response


def _drop_gone(transport: Transport, snapshot: Snapshot) -> None:
    """Close the connections to instances that are no more."""
    places = transport.places()
    services = {service for service, _, _ in places}
    live = {(name, each.address, each.port) for name in services for each in snapshot.instances(name)}
    transport.drop([place for place in places if place not in live])
