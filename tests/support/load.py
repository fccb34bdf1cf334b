"""A steady load that records every answer: how a resilience test knows what a fault cost.

    with Load(Plan(port=8080, paths=("/api/products",), rate_per_s=200)) as load:
        ...                                  # the fault, and its mending
    report = load.report()
    assert not report.failures()

Requests go out on keep-alive connections and are never repeated: a connection that the edge closes under a
request is a failure of the edge. All points in time are `time.monotonic()` seconds, which processes of one machine share.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

from tests.support.wire import Reply, Wire, WireError

# More than any test asks for: 60 s at 2,000/s. A load that passes it stops, rather than eat the machine's memory.
MAX_ANSWERS = 120_000


@dataclass(frozen=True)
class Plan:
    """What to send. `rate_per_s` over all connections (open loop); None sends back to back (closed loop).

    `paths` are taken in turn. A `body` that is a function is called for each request; it must be safe for threads. `ok` are the statuses that are no failure. Latency is counted from the moment
    a request was due, so that an edge that stalls shows it in every request that had to wait. `right` judges path and
    body of each answer whose status is ok; what it does not like is an error `wrong`.
    """

    port: int
    paths: tuple[str, ...]
    host: str = "127.0.0.1"
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Callable[[], bytes] = b""
    connections: int = 8
    rate_per_s: float | None = 200.0
    timeout_s: float = 10.0
    ok: frozenset[int] = frozenset({200})
    right: Callable[[str, bytes], bool] | None = None


class Answer(NamedTuple):
    """What came of one request. `status` 0 and `error` set (connect, timeout, reset, closed, malformed, wrong) where no whole answer came.

    `cut`: its first byte had come and then the connection ended; `status` is then that of the torn answer.
    """

    due_s: float
    ended_s: float
    status: int
    error: str | None = None
    cut: bool = False
    served_by: str = ""
    lane: str = ""
    retry_after: str = ""
    request_id: str = ""
    path: str = ""
    cache: str = ""
    sent_s: float = 0.0

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.due_s

    @property
    def took_s(self) -> float:
        """How long the server had it: without the time for which the one before it held its connection."""
        return self.ended_s - self.sent_s


@dataclass(frozen=True)
class Report:
    """Every answer of one load, in the order in which they ended."""

    answers: tuple[Answer, ...]
    ok: frozenset[int] = frozenset({200})
    connects: int = 0

    def good(self) -> list[Answer]:
        return [a for a in self.answers if a.error is None and a.status in self.ok]

    def cuts(self) -> list[Answer]:
        """Answers that ended after their first byte: no retry can mend them, so they are counted apart."""
        return [a for a in self.answers if a.cut]

    def failures(self) -> list[Answer]:
        """Everything that is neither good nor cut."""
        return [a for a in self.answers if not a.cut and (a.error is not None or a.status not in self.ok)]

    def since(self, start_s: float, end_s: float = math.inf) -> Report:
        """The answers to requests that were due in [start_s, end_s)."""
        return Report(tuple(a for a in self.answers if start_s <= a.due_s < end_s), self.ok)

    def recovered_within(self, fault_s: float) -> float:
        """Seconds from the fault to the end of its last failure or cut: 0.0 without any, infinite with no good answer after it."""
        bad = [a.ended_s for a in (*self.failures(), *self.cuts()) if a.ended_s >= fault_s]
        last = max(bad, default=fault_s)
        if not any(a.ended_s > last for a in self.good()):
            return math.inf
        return last - fault_s

    def served(self) -> Counter[str]:
        """Instance id → good answers."""
        return Counter(a.served_by for a in self.good())

    def last_answer_of(self, instance_id: str) -> float:
        """When the instance's last good answer ended; minus infinity where there is none."""
        return max((a.ended_s for a in self.good() if a.served_by == instance_id), default=-math.inf)

    def latency_s(self, quantile: float) -> float:
        """That quantile (0–1) of the good answers' latency; NaN without any."""
        values = sorted(a.latency_s for a in self.good())
        return values[min(int(quantile * len(values)), len(values) - 1)] if values else math.nan

    def summary(self) -> str:
        """One line for a failing test: counts, kinds of failure, latencies."""
        kinds = Counter(a.error or str(a.status) for a in self.failures())
        return (
            f"{len(self.answers)} answers, {len(self.failures())} failed {dict(kinds)}, {len(self.cuts())} cut, "
            f"p50 {self.latency_s(0.5) * 1000:.1f} ms, p99 {self.latency_s(0.99) * 1000:.1f} ms, "
            f"max {self.latency_s(1) * 1000:.1f} ms, {self.connects} connects; first failures: {self.failures()[:3]}"
        )


class _Worker:
    """One connection: sends what is due, records what comes."""

    def __init__(self, plan: Plan, number: int, start_s: float, stop: threading.Event) -> None:
        self.plan = plan
        self.number = number
        self.start_s = start_s
        self.stop = stop
        self.answers: list[Answer] = []
        self.wire = Wire(plan.host, plan.port, plan.timeout_s)
        self.thread = threading.Thread(target=self._run, name=f"load-{number}", daemon=True)

    def _run(self) -> None:
        limit = MAX_ANSWERS // self.plan.connections
        for turn in range(limit):
            due = self._due(turn)
            if self.stop.wait(max(due - time.monotonic(), 0)) or self.stop.is_set():
                break
            path = self.plan.paths[(turn * self.plan.connections + self.number) % len(self.plan.paths)]
            self.answers.append(self._ask(due, path))
        self.wire.close()

    def _due(self, turn: int) -> float:
        if self.plan.rate_per_s is None:
            return time.monotonic()
        return self.start_s + (turn * self.plan.connections + self.number) / self.plan.rate_per_s

    def _ask(self, due: float, path: str) -> Answer:
        request_id, sent = uuid.uuid4().hex, time.monotonic()
        came: Reply | WireError
        error, cut = None, False
        try:
            came = self.wire.exchange(self._request(path, request_id), head=self.plan.method == "HEAD")
        except WireError as failure:
            came, error = failure, failure.kind
            cut = failure.started and failure.kind in ("closed", "reset")
            if failure.kind == "connect":
                self.stop.wait(0.01)  # a refused connection returns at once: without this it would spin
        else:
            if came.status in self.plan.ok and self.plan.right and not self.plan.right(path, came.body):
                error = "wrong"
        return Answer(
            due_s=due,
            sent_s=sent,
            ended_s=time.monotonic(),
            status=came.status,
            error=error,
            cut=cut,
            served_by=came.headers.get("x-served-by", ""),
            lane=came.headers.get("x-served-lane", ""),
            retry_after=came.headers.get("retry-after", ""),
            request_id=request_id,
            path=path,
            cache=came.headers.get("x-cache", ""),
        )

    def _request(self, path: str, request_id: str) -> bytes:
        plan = self.plan
        body = plan.body if isinstance(plan.body, bytes) else plan.body()
        lines = [
            f"{plan.method} {path} HTTP/1.1",
            f"Host: {plan.host}:{plan.port}",
            f"X-Request-ID: {request_id}",
        ]
        lines += [f"{name}: {value}" for name, value in plan.headers.items()]
        if body or plan.method not in ("GET", "HEAD", "DELETE"):
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode() + body


class Load:
    """Runs a plan in threads of this process from `start` to `stop`; a context manager does both."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._stop = threading.Event()
        self._workers: list[_Worker] = []

    def start(self) -> Self:
        start_s = time.monotonic()
        self._workers = [_Worker(self.plan, n, start_s, self._stop) for n in range(self.plan.connections)]
        for worker in self._workers:
            worker.thread.start()
        return self

    def stop(self) -> None:
        """End the load; each connection finishes the request that it is at."""
        self._stop.set()
        for worker in self._workers:
            worker.thread.join(self.plan.timeout_s + 5)

    def report(self) -> Report:
        """What has been recorded so far; callable while the load runs."""
        answers: Iterable[Answer] = (a for w in self._workers for a in tuple(w.answers))
        connects = sum(w.wire.connects for w in self._workers)
        return Report(tuple(sorted(answers, key=lambda a: a.ended_s)), self.plan.ok, connects)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
