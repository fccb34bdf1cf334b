"""One attempt: a request to one instance over pooled connections. Knows no retries but one: see `HttpTransport`.

Errors are divided by whether the request may have reached the instance (see `errors`).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from discovery.clock import Clock
from discovery.errors import ConnectFailed
from discovery.http.body import OnceBody
from discovery.http.connection import Connection, connect
from discovery.http.pool import Pool
from discovery.http.response import LOST, Finish, Response, detail_of, translate
from discovery.model import Instance

MIN_TIMEOUT_S = 0.001
SWEEP_S = 5.0
# An instance that has just named its service need not do so on each of the connections of a burst.
IDENTITY_S = 1.0
MAX_IDENTITY_BYTES = 64 * 1024
# A connection that was closed while it was idle shows so at once; one that ends later had its request, and lost it.
STALE_S = 0.5


# Service, address and port.
Place = tuple[str, str, int]


@dataclass(slots=True)
class Outgoing:
    """What is sent, but for what differs by attempt.

    `start` is the request line and `fields` the header lines, both checked and ending in CRLF; Host is added: `host_line`, or
    where empty the instance's address. `body` is bytes,
    None, or read once: then `length` says how long it is, and None that it goes out by chunks. `twice`: may run twice.
    `both_ways`: the answer may begin, and go on, while the body is still coming.
    """

    service: str
    method: str
    start: bytes
    fields: bytes
    body: bytes | OnceBody | None
    length: int | None = None
    twice: bool = False
    host_line: bytes = b""
    both_ways: bool = False

    def replayable(self) -> bool:
        """Whether the body can be sent again from its beginning."""
        return not (isinstance(self.body, OnceBody) and self.body.begun)


class HttpTransport:
    """Pools of connections, one for each service at an instance's address. Thread-safe; no proxies, no redirects.

    One retry: a kept connection may have been closed by the other side just when it was used. If it ends before anything has
    come, the request goes out once more on a fresh one, provided that it may run twice or that nothing of it was written. Each
    such retry uses up a connection that an answer left behind: there cannot be more of them than answers.

    Where an instance has an `identity_path`, a new connection asks there first for the name of its service: what listens at a port
    can only become another with another connection. The requests after that cost nothing more.
    """

    def __init__(self, *, connect_timeout_s: float, connections: int, clock: Clock) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._connections = connections
        self._clock = clock
        self._lock = threading.Lock()
        self._pools: dict[Place, Pool] = {}
        self._sweep_at = 0.0

    def send(
        self,
        outgoing: Outgoing,
        instance: Instance,
        *,
        added: bytes = b"",
        timeout_s: float,
        read_timeout_s: float,
        max_bytes: int,
        finish: Finish | None = None,
    ) -> Response:
        """Send, and wait up to `timeout_s` for the head of the answer; each piece of its body may take `read_timeout_s`; read
        whole, it may have `max_bytes`.

        `added` are further header lines. `finish(error)` is called once when the answer has been read or left; not when this
        raises: ConnectFailed, ResponseLost, ResponseTimeout; ValueError for a request that cannot be sent.
        """
        pool = self._pool((outgoing.service, instance.address, instance.port))
        host = outgoing.host_line or pool.host_line
        head = b"".join((outgoing.start, host, outgoing.fields, added, b"\r\n"))
        until = self._clock.monotonic() + max(MIN_TIMEOUT_S, timeout_s)
        connection = pool.take(fresh=not outgoing.twice)
        if connection is None or not self._exchange(connection, outgoing, instance, head, until):
            connection = self._connect(pool, outgoing, instance, until)
            self._exchange(connection, outgoing, instance, head, until)
        return Response(
            connection,
            pool,
            outgoing.service,
            instance,
            read_timeout_s=max(MIN_TIMEOUT_S, read_timeout_s),
            max_bytes=max_bytes,
            clock=self._clock,
            finish=finish,
        )

    def _exchange(
        self, connection: Connection, outgoing: Outgoing, instance: Instance, head: bytes, until: float
    ) -> bool:
        """Send a request and hear the head of its answer; False when a fresh connection is to be tried."""
        began = self._clock.monotonic()
        try:
            connection.ask(
                head,
                outgoing.body,
                outgoing.length,
                head_only=outgoing.method == "HEAD",
                until=until,
                both_ways=outgoing.both_ways,
            )
            return True
        except LOST as error:
            connection.close()
            stale = connection.kept and not connection.answer.heard and not isinstance(error, TimeoutError)
            again = outgoing.replayable() and (outgoing.twice or not connection.wrote)
            if stale and again and self._clock.monotonic() - began < STALE_S:
                return False
            if not connection.wrote:
                raise _connect_failed(error, outgoing.service, instance) from error
            raise translate(error, outgoing.service, instance) from error
        except BaseException:
            connection.close()
            raise

    def _connect(self, pool: Pool, outgoing: Outgoing, instance: Instance, until: float) -> Connection:
        connection = self._open(pool, outgoing, instance, until)
        if not instance.identity_path or self._clock.monotonic() - pool.identified_at < IDENTITY_S:
            return connection
        try:
            self._identify(connection, pool, outgoing, instance, until)
        except BaseException:
            connection.close()
            raise
        pool.identified_at = self._clock.monotonic()
        if connection.reusable:
            return connection
        connection.close()
        return self._open(pool, outgoing, instance, until)

    def _open(self, pool: Pool, outgoing: Outgoing, instance: Instance, until: float) -> Connection:
        left_s = max(MIN_TIMEOUT_S, until - self._clock.monotonic())
        try:
            sock = connect(*pool.address, min(self._connect_timeout_s, left_s))
        except (OSError, ValueError, OverflowError) as error:
            raise _connect_failed(error, outgoing.service, instance) from error
        return Connection(sock, self._clock)

    def _identify(
        self, connection: Connection, pool: Pool, outgoing: Outgoing, instance: Instance, until: float
    ) -> None:
        """Ask the other side for the name of its service. Raises ConnectFailed where that is another or none, for no request was
        sent; and ResponseTimeout where no answer comes, as for a request, for the instance hangs."""
        start = f"GET {instance.identity_path} HTTP/1.1\r\n".encode("ascii")
        head = b"".join(
            (start, pool.host_line, b"User-Agent: edge-check\r\nAccept-Encoding: identity\r\n\r\n")
        )
        said: str | None = None
        try:
            connection.ask(head, None, None, head_only=False, until=until)
            said = connection.answer.headers.get("X-Service")
            left = MAX_IDENTITY_BYTES
            while left > 0 and (piece := connection.piece(until)):
                left -= len(piece)
        except TimeoutError as error:
            raise translate(error, outgoing.service, instance) from error
        except LOST as error:
            raise _connect_failed(error, outgoing.service, instance) from error
        if said != outgoing.service:
            detail = f"{instance.id} at {instance.address}:{instance.port} says that it is of {said!r:.80}"
            raise ConnectFailed(outgoing.service, detail, instance_id=instance.id)

    def _pool(self, place: Place) -> Pool:
        now = self._clock.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            for pool in list(self._pools.values()):
                pool.sweep()
        found = self._pools.get(place)
        if found is None:
            with self._lock:
                # Not bounded while in use: a burst opens further connections, which are closed afterwards.
                found = self._pools.setdefault(place, Pool(place[1:], self._connections, self._clock))
        return found

    def places(self) -> Collection[Place]:
        """Where there are pools now."""
        return tuple(self._pools)

    def drop(self, places: Iterable[Place]) -> None:
        """Close the idle connections to places that are gone; those in use end with their answers."""
        for place in places:
            with self._lock:
                pool = self._pools.pop(place, None)
            if pool is not None:
                pool.close()


def _connect_failed(error: Exception, service: str, instance: Instance) -> ConnectFailed:
    return ConnectFailed(service, detail_of(error, instance), instance_id=instance.id)
