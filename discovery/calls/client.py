"""ServiceClient: a call by service name. Deadline, breaker, pick, attempt, record."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import structlog

from discovery.balancing.balancer import balance_of, some_came, usable
from discovery.balancing.ejection import Identity, identity
from discovery.calls.call import DEADLINE_HEADER, Body, Call, Query, Relay, target
from discovery.calls.observer import Observer
from discovery.calls.settings import ClientSettings
from discovery.calls.upstream import Upstream
from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul.static import Reading
from discovery.errors import (
    AnswerTooLarge,
    BudgetExhausted,
    CallError,
    ConnectFailed,
    DeadlineExceeded,
    NoInstance,
    NotSent,
    ResponseLost,
    ResponseTimeout,
)
from discovery.http.transport import Response, Transport
from discovery.model import Balance, Instance, Snapshot
from discovery.resilience.breaker import Breaker, BreakerSnapshot
from discovery.resilience.patience import Patience, is_late, says_nothing
from discovery.resilience.retry import backoff_s, may_retry

log = structlog.get_logger(__name__)

# What says that an instance, and its service, does not work. 501 and 505 are about the request.
FAILED_STATUSES = frozenset({500, 502, 503, 504})
# How long a short answer that pauses is waited for before what there is of it is passed on.
GATHER_S = 1.0


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
    ) -> None:
        self._view = view
        self._settings = settings or ClientSettings()
        self._clock = clock
        self._token_source = token_source
        self._observer = observer or Observer()
        self._transport = Transport(
            connect_timeout_s=self._settings.connect_timeout_s,
            connections=self._settings.connections,
            clock=clock,
        )
        self._lock = threading.Lock()
        self._upstreams: dict[str, Upstream] = {}
        self._before = Snapshot(version=-1)

    def breakers(self) -> dict[str, BreakerSnapshot]:
        """The breaker of every service called so far."""
        return {service: upstream.breaker.snapshot() for service, upstream in list(self._upstreams.items())}

    def breaker_state(self, service: str) -> str:
        """`closed`, `open` or `half-open`; a service that was never called has nothing against it."""
        upstream = self._upstreams.get(service)
        return upstream.breaker.state if upstream is not None else "closed"

    def breaker(self, service: str) -> Breaker:
        """The service's breaker, made now if it was never called. It is kept: ask for services that there are."""
        return self._upstream(service).breaker

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
        avoid: Collection[Identity] = (),
        tried: set[Identity] | None = None,
        max_body_bytes: int | None = None,
    ) -> Response:
        """Call a service and return its answer, whatever its status; 502, 503 and 504 after the retries that are allowed.

        `path` starts with `/`. `deadline_s` covers all attempts and travels on as `X-Deadline-Ms`; when streaming, until the head
        of the answer. A `body` that is an iterator can be sent once only. `balance` overrides the service's own `edge-balance`;
        `source_key` is what `source` and `uri` go by; its failures alone open no breaker while others succeed. Raises CallError;
        ValueError for a request nobody could be sent. An answer that is not streamed may have `max_body_bytes` (AnswerTooLarge).

        For hedges: instances in `avoid` are taken when no other is left, and `tried` learns at once where each attempt goes. One
        set may be given as both, to several calls: each then keeps away from where the others are.

        `usual_s` is what such a call is given where there is time: when `deadline_s` is shorter, its being late says nothing about
        the upstream. `relay` is for a streamed answer to somebody else's request.
        """
        began = self._clock.monotonic()
        call = Call(
            began + (self._settings.deadline_s if deadline_s is None else deadline_s),
            method=method,
            service=service,
            target=target(path, query),
            headers=headers or {},
            own=(("X-Request-ID", request_id), ("traceparent", traceparent)),
            body=body,
            json=json,
            stream=stream,
            patience=self._patience(usual_s, relay),
            relay=relay,
            balance=balance,
            key=source_key,
            avoid=avoid,
            tried=tried,
            max_body_bytes=self._settings.max_body_bytes if max_body_bytes is None else max_body_bytes,
        )
        return self._observed(call, began)

    def latency_s(self, service: str, quantile: float = 0.95) -> float | None:
        """What that share of the service's last good attempts took; None while too few are known. A streamed one counts to its head."""
        upstream = self._upstreams.get(service)
        return upstream.latencies.quantile(quantile) if upstream else None

    def spend_retry(self, service: str) -> bool:
        """Take one attempt more out of the service's retry budget, for a hedge; False when it is spent."""
        return self._upstream(service).budget.spend()

    # -- one call

    def _patience(self, usual_s: float | None, relay: Relay | None) -> Patience:
        settings = self._settings
        if relay is not None:
            return Patience(relay.head_s, relay.head_s, settings.patience_s, shares=False)
        return Patience(settings.attempt_timeout_s, usual_s or 0.0, settings.patience_s, shares=True)

    def _observed(self, call: Call, began: float) -> Response:
        outcome = "error"
        try:
            response = self._guarded(call)
            outcome = f"{response.status // 100}xx"
            return response
        except CallError as error:
            outcome = type(error).__name__
            raise
        finally:
            self._observer.on_call(
                call.service, call.method, outcome, call.attempts, self._clock.monotonic() - began
            )

    def _guarded(self, call: Call) -> Response:
        """The attempts of a call within the service's breaker."""
        if self._left_s(call) <= 0:
            raise DeadlineExceeded(call.service, sent=False)
        another = call.twice and self._settings.retry.attempts > 1
        call.patient = call.patience.enough_in_all(self._left_s(call), another=another)
        self._forget_gone()
        instances = self._view.snapshot().instances(call.service)
        upstream = self._upstreams.get(call.service)
        if not (upstream.usable(instances) if upstream else usable(instances)):
            raise NoInstance(call.service, "no instance that could take the call")
        upstream = upstream or self._upstream(call.service)
        permit = upstream.breaker.enter(call.key or "")
        try:
            if self._token_source is not None and call.wants_token():
                call.authorize(self._token_source(self._left_s(call)))
            upstream.budget.called()
            response = self._attempts(call, upstream)
        except CallError as error:
            error.neutral = says_nothing(error, patient=call.patient)
            permit.ignored() if error.neutral else permit.failed(str(error))
            raise
        except BaseException:
            permit.ignored()
            raise
        if response.status not in FAILED_STATUSES:
            permit.succeeded()
        elif not call.patient and is_late(response.status):
            permit.ignored()
        else:
            permit.failed(f"status {response.status}")
        call.returned = True
        return response

    def _attempts(self, call: Call, upstream: Upstream) -> Response:
        while True:
            instance = self._pick(call, upstream)
            call.goes_to(identity(instance))
            outcome = self._attempt(call, upstream, instance)
            error = outcome if isinstance(outcome, CallError) else None
            call.sent += not isinstance(error, NotSent)
            cause = error or (outcome.status if isinstance(outcome, Response) else 0)
            if not may_retry(cause, twice=call.twice, replayable=call.outgoing.replayable) or not self._again(
                call
            ):
                return self._final(call, outcome)
            if not self._paid(call, upstream, outcome):
                if isinstance(outcome, ConnectFailed):
                    raise BudgetExhausted(
                        call.service, outcome.detail, attempts=call.attempts, instance_id=instance.id
                    ) from outcome
                return self._final(call, outcome)

    def _paid(self, call: Call, upstream: Upstream, outcome: Response | CallError) -> bool:
        """Take one more attempt out of the budget, and wait before it; False when it is not to be made.

        A request that nobody saw may overdraw the budget. Of many that meet a full outage at once, most hear during the
        pause that the others refuse as well: so they look again after it.
        """
        budget = upstream.budget
        unseen = self._unseen(call, upstream, outcome)
        if unseen:
            budget.borrow()
        elif not budget.spend():
            return False
        if isinstance(outcome, Response):
            outcome.close()
        pause_s = backoff_s(self._settings.retry, call.attempts, self._clock)
        self._clock.sleep(min(pause_s, max(0.0, self._left_s(call))))
        return not unseen or self._unseen(call, upstream, outcome) or not budget.overdrawn()

    def _unseen(self, call: Call, upstream: Upstream, outcome: Response | CallError) -> bool:
        """Whether nobody saw the request and somebody is left who is thought to work: no load is doubled by going there.

        Of many calls that leave at once, one dead instance of three would use up the budget before it is ejected.
        """
        if not isinstance(outcome, ConnectFailed):
            return False
        return upstream.another_works(self._view.snapshot().instances(call.service), call.shunned())

    def _final(self, call: Call, outcome: Response | CallError) -> Response:
        outcome.attempts = call.attempts
        if not isinstance(outcome, CallError):
            return outcome
        if self._left_s(call) <= 0:
            raise DeadlineExceeded(
                call.service,
                sent=not isinstance(outcome, NotSent),
                attempts=call.attempts,
                instance_id=outcome.instance_id,
            ) from outcome
        raise outcome

    def _again(self, call: Call) -> bool:
        retry = self._settings.retry
        return call.attempts < retry.attempts and call.sent < retry.sent and self._left_s(call) > 0

    def _another(self, call: Call) -> bool:
        """Whether the attempt that begins may be followed by one more though it reaches its instance."""
        retry = self._settings.retry
        return call.twice and call.attempts < retry.attempts and call.sent + 1 < retry.sent

    def _left_s(self, call: Call) -> float:
        return call.until - self._clock.monotonic()

    def _pick(self, call: Call, upstream: Upstream) -> Instance:
        if self._left_s(call) <= 0:
            raise DeadlineExceeded(call.service, sent=call.attempts > 0, attempts=call.attempts)
        group = upstream.group(self._view.snapshot().instances(call.service), call.shunned())
        if not group:
            raise NoInstance(call.service, "its last instance has gone", attempts=call.attempts)
        return upstream.balancer.pick(group, call.balance or balance_of(group[0]), call.key)

    # -- one attempt

    def _attempt(self, call: Call, upstream: Upstream, instance: Instance) -> Response | CallError:
        """Try one instance, and record how it went with it."""
        left_s, another = self._left_s(call), self._another(call)
        timeout_s = call.patience.attempt_s(left_s, another=another)
        patient = call.patience.enough(timeout_s, another=another)
        began = self._clock.monotonic()
        upstream.balancer.began(instance)
        response = None
        try:
            response = self._transport.send(
                call.outgoing,
                instance,
                added=b"%b: %d\r\n" % (DEADLINE_HEADER.encode(), max(1, int(left_s * 1000))),
                timeout_s=timeout_s,
                read_timeout_s=self._read_timeout_s(call, timeout_s),
                max_bytes=call.max_body_bytes,
                finish=partial(self._stream_ended, call, upstream, instance) if call.stream else None,
            )
            self._read(call, response)
        except CallError as error:
            self._failed(call, upstream, instance, error, patient=patient)
            self._told(call, instance, type(error).__name__, began)
            return error
        finally:
            if response is None or not call.stream:
                upstream.balancer.ended(instance)
        if response.status in FAILED_STATUSES:
            self._failed(call, upstream, instance, response.status, patient=patient)
        else:
            upstream.outliers.succeeded(instance)
            upstream.latencies.add(self._clock.monotonic() - began)
        self._told(call, instance, f"{response.status // 100}xx", began)
        return response

    def _read_timeout_s(self, call: Call, timeout_s: float) -> float:
        if call.relay is not None:
            return call.relay.idle_s
        return self._settings.stream_idle_s if call.stream else timeout_s

    def _read(self, call: Call, response: Response) -> None:
        """As much of the body as belongs to the attempt: all, or of a streamed one what is short enough."""
        if not call.stream:
            response.read_whole(call.until)
        elif call.relay is not None:
            until = min(call.until, self._clock.monotonic() + GATHER_S)
            response.gather(call.relay.whole_bytes, until)

    def _stream_ended(
        self, call: Call, upstream: Upstream, instance: Instance, error: CallError | None
    ) -> None:
        """A streamed answer has been read, left or lost. Its head was a success; one that only falls silent may have nothing to say."""
        upstream.balancer.ended(instance)
        if call.returned and isinstance(error, ResponseLost) and not isinstance(error, ResponseTimeout):
            self._failed(call, upstream, instance, error, patient=True)
            upstream.breaker.lost(str(error), call.key or "")

    def _failed(
        self, call: Call, upstream: Upstream, instance: Instance, outcome: CallError | int, *, patient: bool
    ) -> None:
        if isinstance(outcome, AnswerTooLarge) or (not patient and is_late(outcome)):
            return
        out_s = upstream.outliers.failed(instance, refused=isinstance(outcome, ConnectFailed))
        if out_s:
            log.info("instance ejected", service=call.service, instance_id=instance.id, duration_s=out_s)
            self._observer.on_ejected(call.service, instance.id, out_s)

    def _told(self, call: Call, instance: Instance, outcome: str, began: float) -> None:
        self._observer.on_attempt(
            call.service, instance.id, outcome, call.attempts, self._clock.monotonic() - began
        )

    # -- what is remembered

    def _upstream(self, service: str) -> Upstream:
        upstream = self._upstreams.get(service)
        if upstream is None:
            with self._lock:
                upstream = self._upstreams.get(service)
                if upstream is None:
                    upstream = Upstream(
                        service,
                        retry=self._settings.retry,
                        breaker=self._settings.breaker,
                        outlier=self._settings.outlier,
                        clock=self._clock,
                        observer=self._observer,
                    )
                    self._upstreams[service] = upstream
        return upstream

    def _forget_gone(self) -> None:
        """After a change of the catalog, drop the pools and ejections of instances that are no more, and give new ones a chance."""
        snapshot, before = self._view.snapshot(), self._before
        if snapshot.version == before.version:
            return
        self._before = snapshot
        live: set[tuple[str, str, int]] = set()
        for service, upstream in list(self._upstreams.items()):
            instances = snapshot.instances(service)
            live |= {(service, instance.address, instance.port) for instance in instances}
            upstream.outliers.forget_all_but(instances)
            if some_came(before.instances(service), instances):
                upstream.breaker.reconsider("an instance has come")
        self._transport.drop([place for place in self._transport.places() if place not in live])
