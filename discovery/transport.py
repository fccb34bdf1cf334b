"""One attempt: a request to one instance over pooled connections, and its answer. Knows no retries but one: see `Transport`.

Errors are divided by whether the request may have reached the instance (see `errors`).
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from discovery.clock import Clock
from discovery.errors import AnswerTooLarge, CallError, ConnectFailed, ResponseLost, ResponseTimeout
from discovery.http_answer import BadAnswer
from discovery.http_body import BadEncoding, Decoder, OnceBody
from discovery.http_connection import Connection, connect
from discovery.model import Instance

MIN_TIMEOUT_S = 0.001
# Less than nginx (75 s) and HAProxy keep theirs; where the other side closes earlier it is noticed before the next use.
IDLE_S = 60.0
SWEEP_S = 5.0
# A connection that was closed while it was idle shows so at once; one that ends later had its request, and lost it.
STALE_S = 0.5
Address = tuple[str, int]
Finish = Callable[[CallError | None], None]
_LOST = (OSError, BadAnswer, BadEncoding)


@dataclass(slots=True)
class Outgoing:
    """What is sent, but for what differs by attempt.

    `start` is the request line and `fields` the header lines, both checked and ending in CRLF; Host is added. `body` is bytes,
    None, or read once: then `length` says how long it is, and None that it goes out by chunks. `twice`: may run twice.
    """

    service: str
    method: str
    start: bytes
    fields: bytes
    body: bytes | OnceBody | None
    length: int | None = None
    twice: bool = False

    @property
    def replayable(self) -> bool:
        """Whether the body can be sent again from its beginning."""
        return not (isinstance(self.body, OnceBody) and self.body.begun)


class _Pool:
    """The idle connections to one address, the last used on top. Thread-safe without a lock: a deque's ends are atomic."""

    def __init__(self, address: Address, limit: int, clock: Clock) -> None:
        host, port = address
        self.address = address
        shown = f"[{host.partition('%')[0]}]" if ":" in host else host
        self.host_line = f"Host: {shown}:{port}\r\n".encode("latin-1", "replace")
        self.closed = False
        self._limit = limit
        self._clock = clock
        self._idle: deque[Connection] = deque()

    def take(self) -> Connection | None:
        """An idle connection that still stands."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if connection.quiet():
                return connection
            connection.close()

    def give(self, connection: Connection) -> None:
        """Take back a connection whose exchange is over."""
        if not connection.reusable or len(self._idle) >= self._limit:
            connection.close()
            return
        connection.kept = True
        connection.idle_since = self._clock.monotonic()
        self._idle.append(connection)
        if self.closed:  # asked last: it may just have happened
            self.close()

    def sweep(self, idle_s: float = IDLE_S) -> None:
        """Close what has been idle for so long."""
        until = self._clock.monotonic() - idle_s
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.popleft()
                if connection.idle_since > until:
                    self._idle.appendleft(connection)
                    return
                connection.close()

    def close(self) -> None:
        self.closed = True
        self.sweep(-1.0)


class Response:
    """An instance's answer. `status`, `headers` (see `Headers`), `instance`; `attempts` made, the first included.

    A streamed answer is read by `iter_bytes` and must be read to its end or closed; `with` does that. A body that ends
    early raises ResponseLost, one that pauses too long ResponseTimeout. One reader; `close` may come from anywhere.
    """

    __slots__ = (
        "__weakref__",
        "_actions",
        "_answer",
        "_clock",
        "_connection",
        "_data",
        "_max_bytes",
        "_open",
        "_pool",
        "_read_timeout_s",
        "_service",
        "attempts",
        "headers",
        "instance",
        "status",
    )

    def __init__(
        self,
        connection: Connection,
        pool: _Pool,
        outgoing: Outgoing,
        instance: Instance,
        *,
        read_timeout_s: float,
        max_bytes: int,
        clock: Clock,
        finish: Finish | None,
    ) -> None:
        answer = connection.answer
        self.status = answer.status
        self.headers = answer.headers
        self.instance = instance
        self.attempts = 1
        # Of its own: the connection may serve another exchange by the time that this one's last pieces are taken.
        self._answer = answer
        self._connection = connection
        self._pool = pool
        self._service = outgoing.service
        self._read_timeout_s = read_timeout_s
        self._max_bytes = max_bytes
        self._clock = clock
        # Popped by whoever ends the answer first.
        self._open: list[Finish | None] = [finish]
        self._data: bytes | None = None
        self._actions: list[Callable[[], object]] = []

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._open:
            with contextlib.suppress(Exception):
                self.close()

    def on_end(self, action: Callable[[], object]) -> None:
        """Call `action` once the answer has been read, left or lost: at once when that has happened."""
        self._actions.append(action)
        if not self._open:
            self._act()

    @property
    def data(self) -> bytes:
        """The whole body; reads what is left of a streamed one, up to the client's `max_body_bytes` (AnswerTooLarge)."""
        if self._data is None:
            self._data = self._joined(self.iter_bytes())
        return self._data

    def json(self) -> Any:
        """The body as JSON. Raises ValueError when it is none."""
        return json.loads(self.data)

    def iter_bytes(self) -> Iterator[bytes]:
        """The body as it arrives, in pieces of at most 64 KiB; as it was sent, any content encoding left in place."""
        if self._data is not None:
            yield self._data
            return
        try:
            while piece := self._piece(self._clock.monotonic() + self._read_timeout_s):
                yield piece
        finally:
            self.close()

    def read_whole(self, until: float) -> None:
        """Read the body into memory by a point in time, and undo its content encoding; the headers then name none.

        Raises ResponseLost, ResponseTimeout, AnswerTooLarge.
        """
        answer = self._answer
        if (answer.length or 0) > self._max_bytes and not answer.done:
            self._too_large()
        pieces = self._pieces_until(until)
        if Decoder.knows(answer.encoding):
            pieces = self._decoded(pieces, Decoder(answer.encoding))
            self.headers = self.headers.without("content-encoding", "content-length")
        self._data = self._joined(pieces)

    def close(self) -> None:
        """Leave the rest of the body unread. The connection is not used again, unless the body was read to its end."""
        self._end(None)

    def _piece(self, until: float) -> bytes:
        """The next piece; hands the connection back with the last."""
        answer = self._answer
        if not self._open:
            if not answer.done:
                raise ResponseLost(self._service, "the answer was left unread", instance_id=self.instance.id)
            return answer.take() if answer.pieces else b""
        try:
            piece = self._connection.piece(until)
        except _LOST as error:
            lost = translate(error, self._service, self.instance)
            self._end(lost)
            raise lost from error
        except BaseException:
            self.close()
            raise
        if answer.done:
            self._end(None)
        return piece

    def _pieces_until(self, until: float) -> Iterator[bytes]:
        while piece := self._piece(min(until, self._clock.monotonic() + self._read_timeout_s)):
            yield piece

    def _decoded(self, pieces: Iterator[bytes], decoder: Decoder) -> Iterator[bytes]:
        raw_bytes = 0
        try:
            for piece in pieces:
                raw_bytes += len(piece)
                if raw_bytes > self._max_bytes:  # some encodings of nothing are long
                    self._too_large()
                yield from decoder.feed(piece)
            decoder.end()
        except BadEncoding as error:
            lost = translate(error, self._service, self.instance)
            self._end(lost)
            raise lost from error

    def _joined(self, pieces: Iterator[bytes]) -> bytes:
        first = next(pieces, b"")
        size = len(first)
        all_pieces = [first]
        for piece in pieces:
            size += len(piece)
            if size > self._max_bytes:
                self._too_large()
            all_pieces.append(piece)
        if size > self._max_bytes:
            self._too_large()
        return first if len(all_pieces) == 1 else b"".join(all_pieces)

    def _too_large(self) -> NoReturn:
        self.close()
        detail = f"an answer of more than {self._max_bytes} bytes"
        raise AnswerTooLarge(self._service, detail, instance_id=self.instance.id)

    def _end(self, error: CallError | None) -> None:
        try:
            finish = self._open.pop()
        except IndexError:
            return
        if error is None and self._answer.done:
            self._pool.give(self._connection)
        else:
            self._connection.close()
        try:
            if finish is not None:
                finish(error)
        finally:
            self._act()

    def _act(self) -> None:
        while self._actions:
            with contextlib.suppress(IndexError):  # somebody else was quicker
                self._actions.pop()()


class Transport:
    """Pools of connections, one for each instance's address. Thread-safe; no proxies, no redirects.

    One retry: a kept connection may have been closed by the other side just when it was used. If it ends before anything has
    come, the request goes out once more on a fresh one, provided that it may run twice or that nothing of it was written. Each
    such retry uses up a connection that an answer left behind: there cannot be more of them than answers.
    """

    def __init__(self, *, connect_timeout_s: float, connections: int, clock: Clock) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._connections = connections
        self._clock = clock
        self._lock = threading.Lock()
        self._pools: dict[Address, _Pool] = {}
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
        raises: ConnectFailed, ResponseLost, ResponseTimeout; ValueError for a request that cannot be sent to anyone.
        """
        pool = self._pool((instance.address, instance.port))
        head = b"".join((outgoing.start, pool.host_line, outgoing.fields, added, b"\r\n"))
        until = self._clock.monotonic() + max(MIN_TIMEOUT_S, timeout_s)
        connection = pool.take()
        if connection is None or not self._exchange(connection, outgoing, instance, head, until):
            connection = self._connect(pool, outgoing, instance, until)
            self._exchange(connection, outgoing, instance, head, until)
        return Response(
            connection,
            pool,
            outgoing,
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
                head, outgoing.body, outgoing.length, head_only=outgoing.method == "HEAD", until=until
            )
            return True
        except _LOST as error:
            connection.close()
            stale = connection.kept and not connection.answer.heard and not isinstance(error, TimeoutError)
            again = outgoing.replayable and (outgoing.twice or not connection.wrote)
            if stale and again and self._clock.monotonic() - began < STALE_S:
                return False
            if not connection.wrote:
                raise _connect_failed(error, outgoing.service, instance) from error
            raise translate(error, outgoing.service, instance) from error
        except BaseException:
            connection.close()
            raise

    def _connect(self, pool: _Pool, outgoing: Outgoing, instance: Instance, until: float) -> Connection:
        left_s = max(MIN_TIMEOUT_S, until - self._clock.monotonic())
        try:
            sock = connect(*pool.address, min(self._connect_timeout_s, left_s))
        except (OSError, ValueError, OverflowError) as error:
            raise _connect_failed(error, outgoing.service, instance) from error
        return Connection(sock, self._clock)

    def _pool(self, address: Address) -> _Pool:
        now = self._clock.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            for pool in list(self._pools.values()):
                pool.sweep()
        found = self._pools.get(address)
        if found is None:
            with self._lock:
                # Not bounded while in use: a burst opens further connections, which are closed afterwards.
                found = self._pools.setdefault(address, _Pool(address, self._connections, self._clock))
        return found

    def addresses(self) -> Collection[Address]:
        """Where there are pools now."""
        return tuple(self._pools)

    def drop(self, addresses: Iterable[Address]) -> None:
        """Close the idle connections to addresses that are gone; those in use end with their answers."""
        for address in addresses:
            with self._lock:
                pool = self._pools.pop(address, None)
            if pool is not None:
                pool.close()


def _connect_failed(error: Exception, service: str, instance: Instance) -> ConnectFailed:
    return ConnectFailed(service, _detail(error, instance), instance_id=instance.id)


def translate(error: Exception, service: str, instance: Instance) -> ResponseLost:
    """What went wrong once something had been written, as one of our errors."""
    kind = ResponseTimeout if isinstance(error, TimeoutError) else ResponseLost
    return kind(service, _detail(error, instance), instance_id=instance.id)


def _detail(error: Exception, instance: Instance) -> str:
    said = "" if isinstance(error, TimeoutError) else f": {error}"
    return f"{instance.address}:{instance.port}: {type(error).__name__}{said}"[:200]
