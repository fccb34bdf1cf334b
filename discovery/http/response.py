"""An instance's answer as its caller has it: whole, or piece by piece; and what has gone wrong, as one of our errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from discovery.clock import Clock
from discovery.errors import AnswerTooLarge, CallError, ResponseLost, ResponseTimeout
from discovery.http.answer import BadAnswer
from discovery.http.body import BadEncoding, Decoder
from discovery.http.connection import Connection
from discovery.http.pool import Pool
from discovery.model import Instance

Finish = Callable[[CallError | None], None]
# What a connection raises when the answer will not come, or not whole.
LOST = (OSError, BadAnswer, BadEncoding)


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
        # Popped by the thread that ends the answer first.
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
            self._data = self._join(self.iter_bytes())
        return self._data

    def json(self) -> Any:
        """The body as JSON. Raises ValueError when it is not JSON."""
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
        answer = self._answer
        if answer.length is None or answer.length > most_bytes:
            return
        try:
            while self._open and not answer.done:
                self._connection.more(until)
            self._end(None)
        except TimeoutError:
            return
        except LOST as error:
            lost = translate(error, self._service, self.instance)
            self._end(lost)
            raise lost from error
        except BaseException:
            self.close()
            raise

    def read_whole(self, until: float) -> None:
        """Read the body into memory by a point in time, and undo its content encoding; the headers then name none.

        Raises ResponseLost, ResponseTimeout, AnswerTooLarge.
        """
        answer = self._answer
        if answer.done and not answer.encoding and self._open:  # as most are: all came with the head
            self._end(None)
            self._data = self._bound(answer.take())
            return
        if (answer.length or 0) > self._max_bytes and not answer.done:
            self._too_large()
        pieces = self._pieces_until(until)
        if Decoder.knows(answer.encoding):
            pieces = self._decode(pieces, Decoder(answer.encoding))
            self.headers = self.headers.without("content-encoding", "content-length")
        self._data = self._join(pieces)

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
        except LOST as error:
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

    def _decode(self, pieces: Iterator[bytes], decoder: Decoder) -> Iterator[bytes]:
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

    def _join(self, pieces: Iterator[bytes]) -> bytes:
        size = 0
        held = []
        for piece in pieces:
            size += len(piece)
            if size > self._max_bytes:
                self._too_large()
            held.append(piece)
        return b"".join(held)

    def _bound(self, body: bytes) -> bytes:
        return body if len(body) <= self._max_bytes else self._too_large()

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
            with contextlib.suppress(IndexError):  # another thread was quicker
                self._actions.pop()()


def translate(error: Exception, service: str, instance: Instance) -> ResponseLost:
    """What went wrong once something had been written, as one of our errors."""
    kind = ResponseTimeout if isinstance(error, TimeoutError) else ResponseLost
    return kind(service, detail_of(error, instance), instance_id=instance.id)


def detail_of(error: Exception, instance: Instance) -> str:
    """Where it happened and what, for logs: inner addresses are in it."""
    said = "" if isinstance(error, TimeoutError) else f": {error}"
    return f"{instance.address}:{instance.port}: {type(error).__name__}{said}"[:200]
