"""The blocking-query loop, and the token bucket that limits it.

The rules are Consul's own: start again from 0 when the index goes back, never wait on an index below 1, take a return for
a hint and not for a change, limit the rate, back off with full jitter on errors.
Ref: https://developer.hashicorp.com/consul/api-docs/features/blocking; consul-template's watch/view.go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.errors import ConsulError
from discovery.loop import Loop, backoff_s

log = structlog.get_logger(__name__)
T = TypeVar("T")

# How the index of an answer stands to the one before: `reset` went back, so Consul was restored or is another one;
# `rejoined` is the first answer after failures that went on for a second or more, in which it could have been.
Turn = Literal["same", "moved", "reset", "rejoined"]

# Short enough that a connection which hangs is noticed soon; long enough to cost nothing.
WAIT_S = 10.0
REJOIN_AFTER_S = 1.0


class TokenBucket:
    """`burst` at once, `rate_per_s` in the long run. Thread-safe; amounts may be fractions."""

    def __init__(self, rate_per_s: float, burst: float, clock: Clock = SYSTEM_CLOCK) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._clock = clock
        self._level = burst
        self._at = clock.monotonic()
        self._lock = threading.Lock()

    def take(self, amount: float = 1.0) -> float:
        """Take tokens, into debt if need be; returns how many seconds to wait until the debt is paid."""
        with self._lock:
            now = self._clock.monotonic()
            self._level = min(self._burst, self._level + (now - self._at) * self._rate_per_s) - amount
            self._at = now
            return max(0.0, -self._level / self._rate_per_s)


class Watch(Generic[T]):
    """Follows one blocking query on a daemon thread of its own.

    `fetch(index, wait_s)` asks; `on_answer(answer, turn)` is called with every answer, changed or not; `on_error(error)`
    once for each ask that failed. ConsulError from `on_answer` refuses the answer: it counts as a failed ask.
    """

    def __init__(
        self,
        name: str,
        fetch: Callable[[int, float], tuple[int, T]],
        on_answer: Callable[[T, Turn], None],
        on_error: Callable[[ConsulError], None],
        *,
        clock: Clock = SYSTEM_CLOCK,
        wait_s: float = WAIT_S,
        bucket: TokenBucket | None = None,
    ) -> None:
        self.name = name
        self._fetch = fetch
        self._on_answer = on_answer
        self._on_error = on_error
        self._clock = clock
        self._wait_s = wait_s
        # A deploy changes much in little time and must not wait; what flaps all day must not spin, and even then a change
        # waits 10 ms at most.
        self._bucket = bucket or TokenBucket(rate_per_s=100.0, burst=500.0, clock=clock)
        self._loop = Loop(f"watch-{name}", self.step, clock=clock)
        self._index = 0  # what to wait on
        self._seen = 0  # the last index that came
        self._failures = 0
        self._failed_at = 0.0

    def start(self) -> None:
        self._loop.start()

    def stop(self) -> None:
        """Returns at once. The thread ends when the query under way does; nothing is called any more."""
        self._loop.stop()

    def hurry(self) -> None:
        """Ask again now, where the watch is backing off from failures: another query has just been answered."""
        if self._failures:
            self._loop.hurry()

    def step(self) -> float:
        """Ask once and hand on what comes; returns how long to pause before the next time (seconds)."""
        try:
            index, answer = self._fetch(self._index, self._wait_s)
            if self._loop.stopped:
                return 0.0
            turn = self._turn(index)
            self._on_answer(answer, turn)
        except ConsulError as error:
            if self._loop.stopped:
                return 0.0
            return self._failed(error)
        except Exception as error:  # a bug in a callback must not end the watch for ever
            log.exception("watch callback failed", watch=self.name)
            return self._failed(ConsulError(f"{type(error).__name__}: {error}"))
        if self._failures:
            log.info("watch recovered", watch=self.name, failures=self._failures)
        self._failures = 0
        # After a reset ask for everything again instead of waiting on an index of another history.
        self._index = 0 if turn == "reset" else max(index, 1)
        self._seen = index
        return self._bucket.take()

    def _turn(self, index: int) -> Turn:
        if index < self._seen:
            return "reset"
        if self._failures and self._clock.monotonic() - self._failed_at >= REJOIN_AFTER_S:
            return "rejoined"
        return "same" if index == self._seen else "moved"

    def _failed(self, error: ConsulError) -> float:
        if not self._failures:
            log.warning("watch failed", watch=self.name, error=str(error))
            self._failed_at = self._clock.monotonic()
        self._failures += 1
        # Without an index the next ask returns at once: what was missed meanwhile is seen at the first good answer.
        self._index = 0
        self._on_error(error)
        return backoff_s(self._failures, self._clock)
