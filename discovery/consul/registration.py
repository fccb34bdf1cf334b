"""The life of an instance in Consul: registered once it can serve, kept registered, taken out before it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import structlog

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.consul.api import ConsulApi
from discovery.contract import registration_meta
from discovery.errors import ConsulError
from discovery.loop import Loop
from discovery.model import Registration

log = structlog.get_logger(__name__)

POLL_S = 0.05
State = Literal["starting", "registered", "forgotten", "unreachable", "deregistered"]


class Keeper:
    """Registers one instance once it is `ready`, looks every `interval_s`, and registers again what the agent forgot.

    The check stands at passing until Consul's own first check, so that neither a start nor a restarted agent leaves a healthy
    instance out for the time of a check. An agent that cannot be reached is tried again; that is no error of the instance.
    `registration` may be a function: what it answers counts from then on, and None leaves the last as it was.

    It runs on a thread of its own (`start`), or in the turns of a caller that must not have one.
    """

    def __init__(
        self,
        api: ConsulApi,
        registration: Registration | Callable[[], Registration | None],
        interval_s: float = 5.0,
        *,
        ready: Callable[[], bool] = lambda: True,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._api = api
        self._current = registration if callable(registration) else lambda: registration
        self._interval_s = interval_s
        self._ready = ready
        self._clock = clock
        self._loop = Loop("keeper", self._step, clock=clock)
        self._due = 0.0
        self._registration: Registration | None = None  # the last that the agent was asked to take
        self.state: State = "starting"

    def start(self) -> None:
        """Keep at it on a thread of its own. Raises ContractError at once for a bad registration."""
        registration = self._current()
        if registration is not None:
            registration_meta(registration)
        self._loop.start()

    def turn(self) -> float:
        """Do what is due; returns for how long nothing will be (seconds). Raises nothing."""
        if self._loop.stopped:
            return self._interval_s
        left_s = self._due - self._clock.monotonic()
        if left_s > 0:
            return left_s
        pause_s = self._loop.turn()
        self._due = self._clock.monotonic() + pause_s
        return pause_s

    def stop(self) -> bool:
        """Leave Consul for good; returns whether the instance is known to be out. It is tried once, whatever comes of it."""
        again = self._loop.stopped
        self._loop.stop()
        self._loop.join(10.0)  # a register under way must not land after the deregistration
        if self._registration is None:
            return True
        if not again:
            try:
                self._api.deregister(self._registration.id)
                self._enter("deregistered", self._registration)
            except ConsulError as error:
                log.warning("not deregistered", instance_id=self._registration.id, error=str(error))
        return self.state == "deregistered"

    def _step(self) -> float:
        """Look, and register if need be; returns how long to pause (seconds)."""
        registration = self._current() or self._registration
        if registration is None or (self._registration is None and not self._ready()):
            return POLL_S
        try:
            if self._registration is not None and self._api.holds(registration):
                self._enter("registered", registration)
                return self._interval_s
            if self.state == "registered":
                self._enter("forgotten", registration)
            self._registration = registration
            self._api.register(registration, "passing")
        except ConsulError as error:
            if self.state != "unreachable":
                log.warning("agent unreachable", instance_id=registration.id, error=str(error))
            self._enter("unreachable", registration)
            # Sooner than the next look: each second unregistered is a second without traffic.
            return min(self._interval_s, 1.0)
        self._enter("registered", registration)
        return self._interval_s

    def _enter(self, state: State, registration: Registration) -> None:
        if state != self.state:
            log.info("registration", outcome=state, service=registration.name, instance_id=registration.id)
        self.state = state
