"""An instance's answer as its caller has it: whole, or piece by piece; and what has gone wrong, as one of our errors."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

from discovery.clock import Clock
from discovery.errors import AnswerTooLarge, CallError, ResponseLost, ResponseTimeout
from discovery.http.answer import BadAnswer
from discovery.http.connection import Connection
from discovery.http.pool import Pool
from discovery.model import Instance

T = TypeVar("T")
Finish = Callable[[CallError | None], object]
# What a connection raises when the answer will not come, or not whole.
LOST = (OSError, BadAnswer)


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
        "_error",
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
        pool: Pool,
        service: str,
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
        self._service = service
        self._read_timeout_s = read_timeout_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._open = [True]  # popped by the thread that ends the answer first
        self._data: bytes | None = None
        self._error: CallError | None = None
        self._actions = [finish] if finish is not None else []

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._open:
            with contextlib.suppress(Exception):
                self.close()

    def on_end(self, action: Finish) -> None:
        """Call `action(error)` once the answer has been read or left (None) or lost: at once when that has happened."""
        self._actions.append(action)
        if not self._open:
            self._act()

    @property
    def data(self) -> bytes:
        """The whole body; reads what is left of a streamed one, up to the client's `max_body_bytes` (AnswerTooLarge)."""
        if self._data is None:
            self._data = self._join(self.iter_bytes())
        return self._data

    def json(self) -> Any:
        """The body as JSON. Raises ValueError when it is not JSON."""
        return json.loads(self.data)

    def iter_bytes(self, until: float = math.inf) -> Iterator[bytes]:
        """The body as it arrives, in pieces of at most 64 KiB, by a point in time; as it was sent, any content encoding left
        in place."""
        if self._data is not None:
            yield self._data
            return
        try:
            while piece := self._piece(min(until, self._clock.monotonic() + self._read_timeout_s)):
                yield piece
        finally:
            self.close()

    def __iter__(self) -> Iterator[bytes]:
        """As `iter_bytes`."""
        return self.iter_bytes()

    @property
    def complete(self) -> bool:
        """Whether all of the body is here already."""
        return self._data is not None or self._answer.done

    def gather(self, most_bytes: int, until: float) -> None:
        """Wait for the rest of a body that says it has at most so many bytes, but only until then: what has come by that time is
        read as ever. Raises ResponseLost."""
        answer, connection = self._answer, self._connection

        def gather_rest() -> None:
            with contextlib.suppress(TimeoutError):
                while not answer.done:
                    connection.receive(until)

        if self._open and answer.length is not None and answer.length <= most_bytes:
            self._read(gather_rest)

    def read_whole(self, until: float) -> None:
        """Read the body into memory by a point in time. Raises ResponseLost, ResponseTimeout, AnswerTooLarge."""
        answer = self._answer
        if answer.done:  # as most are: all came with the head
            self._end(None)
            self._data = self._join([answer.take()])
        elif (answer.length or 0) > self._max_bytes:
            self._too_large()
        else:
            self._data = self._join(self.iter_bytes(until))

    def close(self) -> None:
        """Leave the rest of the body unread. The connection is not used again, unless the body was read to its end."""
        self._end(None)

    def _piece(self, until: float) -> bytes:
        """The next piece; hands the connection back with the last."""
        answer = self._answer
        if self._open:
            return self._read(lambda: self._connection.piece(until))
        if not answer.done:
            raise ResponseLost(self._service, "the answer was left unread", instance_id=self.instance.id)
        return answer.take() if answer.pieces else b""

    def _read(self, read: Callable[[], T]) -> T:
        """What the connection brings; the exchange ends with its last piece, or where that fails."""
        try:
            found = read()
        except LOST as error:
            lost = translate(error, self._service, self.instance)
            self._end(lost)
            raise lost from error
        except BaseException:
            self.close()
            raise
        if self._answer.done:
            self._end(None)
        return found

    def _join(self, pieces: Iterable[bytes]) -> bytes:
        size = 0
        held = []
        for piece in pieces:
            size += len(piece)
            if size > self._max_bytes:
                self._too_large()
            held.append(piece)
        return b"".join(held)

    def _too_large(self) -> NoReturn:
        self.close()
        detail = f"an answer of more than {self._max_bytes} bytes"
        raise AnswerTooLarge(self._service, detail, instance_id=self.instance.id)

    def _end(self, error: CallError | None) -> None:
        try:
            self._open.pop()
        except IndexError:
            return
        self._error = error
        if error is None and self._answer.done:
            self._pool.give(self._connection)
        else:
            self._connection.close()
        self._act()

    def _act(self) -> None:
        while self._actions:
            with contextlib.suppress(IndexError):  # another thread was quicker
                self._actions.pop()(self._error)


def translate(error: Exception, service: str, instance: Instance) -> ResponseLost:
    """What went wrong once something had been written, as one of our errors."""
    kind = ResponseTimeout if isinstance(error, TimeoutError) else ResponseLost
    return kind(service, detail_of(error, instance), instance_id=instance.id)


def detail_of(error: Exception, instance: Instance) -> str:
    """Where it happened and what, for logs: inner addresses are in it."""
    said = "" if isinstance(error, TimeoutError) else f": {error}"
    return f"{instance.address}:{instance.port}: {type(error).__name__}{said}"[:200]
