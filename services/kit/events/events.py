"""A service's events: `kit().events.publish(…)`, and `app.consumes(…)` on a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog
from prometheus_client import Gauge
from redis import Redis
from sqlalchemy.orm import Session

from services.kit.db.session import Database
from services.kit.events.consumer import Consumer
from services.kit.events.event import Event
from services.kit.events.publisher import Publisher
from services.kit.events.redis_streams import RedisStreams
from services.kit.events.tables import Tables
from services.kit.events.transport import Transport

log = structlog.get_logger(__name__)

E = TypeVar("E", bound=Event)
Handler = Callable[[E, Session], object]

END_S = 5.0


class Events:
    """Publishing needs no broker: without one, what is published waits in the database."""

    def __init__(
        self,
        db: Database,
        tables: Tables,
        service: str,
        instance: str,
        broker: Transport | None,
        backlog: Gauge,
    ) -> None:
        self._broker = broker is not None
        # Without a broker it is never used.
        transport = broker or RedisStreams(Redis(), instance)
        self._publisher = Publisher(db, tables, service, instance, transport, backlog=backlog)
        self._consumer = Consumer(db, tables, service, transport)

    def publish(self, event: Event) -> None:
        """Note an event in the session that is open in this thread: it goes out if that commits, at least once.

        Raises RuntimeError outside of a session, ValueError for an event of another service or of more than 256 KiB.
        """
        self._publisher.publish(event)

    def consumes(self, kind: type[E]) -> Callable[[Handler[E]], Handler[E]]:
        """Have a function called with each event of a type, and a session that is committed after it.

        What it writes there is written once; an exception undoes it, and the event comes again. Raises ValueError for a type
        that is consumed already.
        """
        return self._consumer.consumes(kind)

    @property
    def consumed(self) -> list[type[Event]]:
        """The types of events that the service hears."""
        return self._consumer.kinds

    def start(self) -> None:
        """In the worker."""
        if not self._broker:
            log.warning("no broker: what is published waits in the database", setting="EVENTS_URL")
            return
        self._publisher.loop.start()
        if self._consumer.wanted:
            for loop in self._consumer.loops:
                loop.start()

    def stop(self) -> None:
        """Leave what is under way to other instances."""
        if self._broker:
            self._publisher.loop.stop()
            self._consumer.stop(END_S)
            self._publisher.loop.join(END_S)

    def purge(self) -> None:
        """Forget what no broker delivers again. For a job."""
        self._consumer.purge()
