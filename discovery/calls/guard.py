"""What stands around every call, whatever carries it: deadline, breaker, retry budget, pick, ejection. No HTTP in it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog

from discovery.balancing.balancer import balance_of, some_came, usable
from discovery.balancing.ejection import Identity, identity
from discovery.calls.instrumentation import Observer
from discovery.calls.upstream import ClientSettings, Upstream
from discovery.clock import Clock
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
from discovery.model import Balance, Instance, Snapshot
from discovery.resilience.patience import Patience, is_late, says_nothing
from discovery.resilience.retry import backoff_s, may_retry

log = structlog.get_logger(__name__)

# What says that an instance, and its service, does not work. 501 and 505 are about the request.
FAILED_STATUSES = frozenset({500, 502, 503, 504})


class Answer(Protocol):
    """What an attempt brings: a status in HTTP's terms. It is closed where another attempt is made in its place."""

    status: int
    attempts: int

    def close(self) -> None: ...


A = TypeVar("A", bound=Answer)


@dataclass(slots=True)
class Call:
    """What is asked, and how far it has come. `began` and `until` (the deadline) are monotonic times. Belongs to one thread.

    `twice`: it may run twice; `replayable`: it can be sent again from its beginning. `prepare` is called with the seconds left
    once the breaker has let the call through. `places` learns at once where each attempt goes; the instances in it are taken
    when no other is left. `stream`: an attempt's carrier says when its answer has ended (`Attempt.finish`).
    """

    service: str
    method: str
    began: float
    until: float
    patience: Patience
    twice: bool
    stream: bool = False
    balance: Balance | None = None
    key: str | None = None
    places: set[Identity] = field(default_factory=set)
    replayable: Callable[[], bool] = lambda: True
    prepare: Callable[[float], None] | None = None
    attempts: int = 0
    sent: int = 0
    patient: bool = True
    returned: bool = False


@dataclass(slots=True)
class Attempt:
    """One try on one instance: the head of the answer may take `timeout_s`, `left_s` are left of the whole call."""

    instance: Instance
    timeout_s: float
    left_s: float
    call: Call
    upstream: Upstream
    guard: Guard
    over: bool = False

    def finish(self, error: CallError | None = None) -> None:
        """The answer has been read, left or lost; called by what reads a streamed one."""
        if not self.over:
            self.over = True
            self.guard.ended(self, error)


class Guard:
    """Makes calls to the instances of a view. Thread-safe, and works under gevent.

    `on_catalog` is called with each snapshot that differs from the one before.
    """

    def __init__(
        self,
        view: Reading,
        settings: ClientSettings,
        clock: Clock,
        observer: Observer,
        on_catalog: Callable[[Snapshot], None] = lambda _: None,
    ) -> None:
        self._view = view
        self._settings = settings
        self._clock = clock
        self._observer = observer
        self._on_catalog = on_catalog
        self._lock = threading.Lock()
        self._before = Snapshot(version=-1)
        self.upstreams: dict[str, Upstream] = {}

    def upstream(self, service: str) -> Upstream:
        """What is remembered of a service, made now if it was never called. It is kept: ask for services that there are."""
        upstream = self.upstreams.get(service)
        if upstream is None:
            with self._lock:
                made = Upstream(service, self._settings, self._clock, self._observer)
                upstream = self.upstreams.setdefault(service, made)
        return upstream

    def run(self, call: Call, send: Callable[[Attempt], A]) -> A:
        """The answer of a call, whatever its status, after the attempts that are allowed. Raises CallError.

        `send` makes one attempt: it answers, or raises CallError.
        """
        outcome = "error"
        try:
            answer = self._guarded(call, send)
            outcome = f"{answer.status // 100}xx"
            return answer
        except CallError as error:
            outcome = type(error).__name__
            raise
        finally:
            duration_s = self._clock.monotonic() - call.began
            self._observer.on_call(call.service, call.method, outcome, call.attempts, duration_s)

    def _guarded(self, call: Call, send: Callable[[Attempt], A]) -> A:
        """The attempts of a call within the service's breaker."""
        if self._left_s(call) <= 0:
            raise DeadlineExceeded(call.service, sent=False)
        another = call.twice and self._settings.retry.attempts > 1
        call.patient = call.patience.enough_in_all(self._left_s(call), another=another)
        self._follow_catalog()
        instances = self._view.snapshot().instances(call.service)
        upstream = self.upstreams.get(call.service)
        if not (upstream.usable(instances) if upstream else usable(instances)):
            raise NoInstance(call.service, "no instance that could take the call")
        upstream = upstream or self.upstream(call.service)
        permit = upstream.breaker.enter(call.key or "")
        try:
            if call.prepare is not None:
                call.prepare(self._left_s(call))
            upstream.budget.called()
            answer = self._attempts(call, upstream, send)
        except CallError as error:
            error.neutral = says_nothing(error, patient=call.patient)
            permit.ignored() if error.neutral else permit.failed(str(error))
            raise
        except BaseException:
            permit.ignored()
            raise
        if answer.status not in FAILED_STATUSES:
            permit.succeeded()
        elif not call.patient and is_late(answer.status):
            permit.ignored()
        else:
            permit.failed(f"status {answer.status}")
        call.returned = True
        return answer

    def _attempts(self, call: Call, upstream: Upstream, send: Callable[[Attempt], A]) -> A:
        while True:
            instance = self._pick(call, upstream)
            call.attempts += 1
            call.places.add(identity(instance))
            outcome = self._attempt(call, upstream, instance, send)
            call.sent += not isinstance(outcome, NotSent)
            cause = outcome if isinstance(outcome, CallError) else outcome.status
            again = may_retry(cause, twice=call.twice, replayable=call.replayable())
            if not again or not self._more(call):
                return self._final(call, outcome)
            if not self._paid(call, upstream, outcome):
                if isinstance(outcome, ConnectFailed):
                    raise BudgetExhausted(
                        call.service, outcome.detail, attempts=call.attempts, instance_id=instance.id
                    ) from outcome
                return self._final(call, outcome)

    def _paid(self, call: Call, upstream: Upstream, outcome: Answer | CallError) -> bool:
        """Take one more attempt out of the budget, and wait before it; False when it is not to be made.

        A request that no instance saw may overdraw the budget. Of many that meet a full outage at once, most hear during the
        pause that the others refuse as well: so they look again after it.
        """
        budget = upstream.budget
        unseen = self._unseen(call, upstream, outcome)
        if unseen:
            budget.borrow()
        elif not budget.spend():
            return False
        if not isinstance(outcome, CallError):
            outcome.close()
        pause_s = backoff_s(self._settings.retry, call.attempts, self._clock)
        self._clock.sleep(min(pause_s, max(0.0, self._left_s(call))))
        return not unseen or self._unseen(call, upstream, outcome) or not budget.overdrawn()

    def _unseen(self, call: Call, upstream: Upstream, outcome: Answer | CallError) -> bool:
        """Whether no instance saw the request and one is left that is thought to work: no load is doubled by going there.

        Of many calls that leave at once, one dead instance of three would use up the budget before it is ejected.
        """
        if not isinstance(outcome, ConnectFailed):
            return False
        return upstream.another_works(self._view.snapshot().instances(call.service), call.places)

    def _final(self, call: Call, outcome: A | CallError) -> A:
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

    def _more(self, call: Call, sent: int = 0) -> bool:
        """Whether another attempt is allowed, once `sent` more have reached their instance."""
        retry = self._settings.retry
        return call.attempts < retry.attempts and call.sent + sent < retry.sent and self._left_s(call) > 0

    def _left_s(self, call: Call) -> float:
        return call.until - self._clock.monotonic()

    def _pick(self, call: Call, upstream: Upstream) -> Instance:
        if self._left_s(call) <= 0:
            raise DeadlineExceeded(call.service, sent=call.attempts > 0, attempts=call.attempts)
        group = upstream.group(self._view.snapshot().instances(call.service), call.places)
        if not group:
            raise NoInstance(call.service, "its last instance has gone", attempts=call.attempts)
        return upstream.balancer.pick(group, call.balance or balance_of(group[0]), call.key)

    # -- one attempt

    def _attempt(
        self, call: Call, upstream: Upstream, instance: Instance, send: Callable[[Attempt], A]
    ) -> A | CallError:
        """Try one instance, and record how it went with it."""
        left_s, another = self._left_s(call), call.twice and self._more(call, sent=1)
        timeout_s = call.patience.attempt_s(left_s, another=another)
        patient = call.patience.enough(timeout_s, another=another)
        began = self._clock.monotonic()
        attempt = Attempt(instance, timeout_s, left_s, call, upstream, self)
        upstream.balancer.began(instance)
        answer = None
        try:
            answer = send(attempt)
        except CallError as error:
            self._failed(call, upstream, instance, error, patient=patient)
            self._report(call, instance, type(error).__name__, began)
            return error
        finally:
            if answer is None or not call.stream:
                attempt.finish()
        if answer.status in FAILED_STATUSES:
            self._failed(call, upstream, instance, answer.status, patient=patient)
        else:
            upstream.outliers.succeeded(instance)
            upstream.latencies.add(self._clock.monotonic() - began)
        self._report(call, instance, f"{answer.status // 100}xx", began)
        return answer

    def ended(self, attempt: Attempt, error: CallError | None) -> None:
        """The head of a streamed answer was a success; one that only falls silent may have nothing to say."""
        call, upstream = attempt.call, attempt.upstream
        upstream.balancer.ended(attempt.instance)
        if call.returned and isinstance(error, ResponseLost) and not isinstance(error, ResponseTimeout):
            self._failed(call, upstream, attempt.instance, error, patient=True)
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

    def _report(self, call: Call, instance: Instance, outcome: str, began: float) -> None:
        duration_s = self._clock.monotonic() - began
        self._observer.on_attempt(call.service, instance.id, outcome, call.attempts, duration_s)

    def _follow_catalog(self) -> None:
        """After a change of the catalog, drop the ejections of instances that are gone, and give new ones a chance."""
        snapshot, before = self._view.snapshot(), self._before
        if snapshot.version == before.version:
            return
        self._before = snapshot
        for service, upstream in list(self.upstreams.items()):
            instances = snapshot.instances(service)
            upstream.outliers.forget_all_but(instances)
            if some_came(before.instances(service), instances):
                upstream.breaker.reconsider("an instance has come")
        self._on_catalog(snapshot)
