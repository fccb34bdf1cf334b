"""Register, notice being forgotten, deregister."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import structlog

from discovery.contract import registration_meta
from discovery.errors import ConsulError
from discovery.loop import Loop
from discovery.model import Registration, Status

log = structlog.get_logger(__name__)
Event = Literal["registered", "forgotten", "unreachable", "deregistered"]


class Agent(Protocol):
    """What a keeper needs of ConsulApi."""

    def register(self, registration: Registration, status: Status = ...) -> None: ...

    def deregister(self, instance_id: str) -> None: ...

    def holds(self, registration: Registration) -> bool: ...


class Keeper:
    """Keeps one instance registered: registers it, looks every `interval_s`, and registers again when the agent forgot it.

    Start it once the instance can serve: its check stands at passing until Consul's own first check, so that neither a
    start nor a restarted agent leaves a healthy instance out for the time of a check. `on_event` hears what happened, from
    the keeper's thread. An agent that cannot be reached is tried again each interval; that is no error of the instance.
    """

    def __init__(
        self,
        api: Agent,
        registration: Registration,
        interval_s: float = 5.0,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._api = api
        self.registration = registration
        self._interval_s = interval_s
        self._on_event = on_event
        self._loop = Loop("keeper", self.step)
        self._last: Event | None = None

    def start(self) -> None:
        """Register on a thread of its own, and keep at it. Raises ContractError at once for a bad registration."""
        registration_meta(self.registration)
        self._loop.start()

    def stop(self, deregister: bool = True) -> bool:
        """End the keeping and, by default, leave Consul. Tells whether it is known to have left (or was not to)."""
        self._loop.stop()
        self._loop.join(10.0)  # a register under way must not land after the deregistration
        if not deregister:
            return True
        try:
            self._api.deregister(self.registration.id)
        except ConsulError as error:
            log.warning("not deregistered", instance_id=self.registration.id, error=str(error))
            return False
        self._tell("deregistered")
        return True

    def step(self) -> float:
        """Look, and register if need be; answers how long to pause (seconds)."""
        try:
            if self._last is not None and self._api.holds(self.registration):
                if self._last != "registered":
                    self._tell("registered")
                return self._interval_s
            if self._last == "registered":
                self._tell("forgotten")
            self._api.register(self.registration, "passing")
        except ConsulError as error:
            if self._last != "unreachable":
                log.warning("agent unreachable", instance_id=self.registration.id, error=str(error))
                self._tell("unreachable")
            # Sooner than the next look: each second unregistered is a second without traffic.
            return min(self._interval_s, 1.0)
        self._tell("registered")
        return self._interval_s

    def _tell(self, event: Event) -> None:
        self._last = event
        log.info(
            "registration", outcome=event, service=self.registration.name, instance_id=self.registration.id
        )
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:  # a listener's bug must not end the keeping
                log.exception("registration listener failed", outcome=event)
