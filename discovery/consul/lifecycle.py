"""The order in which an instance comes and goes: serve, then register; leave Consul, then refuse, then end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, Protocol

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock

log = structlog.get_logger(__name__)

POLL_S = 0.05
State = Literal["starting", "serving", "draining", "stopped"]


class Kept(Protocol):
    """What a life cycle needs of a Keeper."""

    def start(self) -> None: ...

    def stop(self, deregister: bool = ...) -> bool: ...


class Lifecycle:
    """One instance from its start to its end.

    `ready()` tells whether it can serve. After leaving Consul it serves on for `drain_delay_s`, until those who follow the
    catalog know; then open requests have `drain_timeout_s`.
    """

    def __init__(
        self,
        keeper: Kept,
        ready: Callable[[], bool],
        *,
        drain_delay_s: float = 1.0,
        drain_timeout_s: float = 20.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._keeper = keeper
        self._ready = ready
        self._drain_delay_s = drain_delay_s
        self._drain_timeout_s = drain_timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._state: State = "starting"

    @property
    def state(self) -> State:
        return self._state

    @property
    def serving(self) -> bool:
        """What `/health/ready` should say."""
        return self._state == "serving"

    def start(self, timeout_s: float) -> bool:
        """Wait until the instance can serve, then register it; False when it was not ready in time, or was stopped."""
        until = self._clock.monotonic() + timeout_s
        while not self._ready():
            if self._state != "starting" or self._clock.monotonic() >= until:
                return False
            self._clock.sleep(POLL_S)
        with self._lock:
            if self._state != "starting":
                return False
            self._state = "serving"
            self._keeper.start()
        return True

    def stop(self, in_flight: Callable[[], int] = lambda: 0) -> bool:
        """Leave Consul, serve on for the delay, and wait for what is `in_flight`; tells whether all of it ended in time.

        A second call does nothing and answers True.
        """
        with self._lock:
            before, self._state = self._state, "draining"
        if before in ("draining", "stopped"):
            return True
        if before == "serving":
            self._keeper.stop()
            self._clock.sleep(self._drain_delay_s)
        until = self._clock.monotonic() + self._drain_timeout_s
        while (left := in_flight()) > 0 and self._clock.monotonic() < until:
            self._clock.sleep(POLL_S)
        self._state = "stopped"
        if left:
            log.warning(
                "requests cut off by the end of the drain", count=left, timeout_s=self._drain_timeout_s
            )
        return not left
