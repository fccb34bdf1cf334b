"""One attempt: a request to one instance over pooled connections, and its answer. Knows urllib3; knows no retries.

Errors are divided by whether the request may have reached the instance (see `errors`).
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    IncompleteRead,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)

from discovery.clock import Clock
from discovery.errors import CallError, ConnectFailed, ResponseLost, ResponseTimeout
from discovery.model import Instance

CHUNK_BYTES = 64 * 1024
MIN_TIMEOUT_S = 0.001
Address = tuple[str, int]
Finish = Callable[[CallError | None], None]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is sent. `target` is path and query; `body` bytes, None, or an iterator that can be read once."""

    service: str
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes | Iterable[bytes] | None


class OnceBody:
    """A body that can be read once, and remembers whether reading has begun: after that it cannot be sent again."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.begun = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.begun = True
        try:
            return next(self._chunks)
        except (StopIteration, GeneratorExit):
            raise
        except Exception as error:
            # As it is, an OSError of the caller's own source would look like one of the upstream's connection.
            raise BodyFailed(f"the request's body could not be read: {error}") from error


class BodyFailed(ValueError):
    """The caller's own iterator raised while the request was being sent."""


class Response:
    """An instance's answer. `status`; `headers`, whose names ignore case; `instance`; `attempts` made, the first included.

    A streamed answer is read by `iter_bytes` and must be read to its end or closed; `with` does that. A body that ends
    early raises ResponseLost, one that pauses too long ResponseTimeout.
    """

    def __init__(
        self,
        raw: urllib3.BaseHTTPResponse,
        outgoing: Outgoing,
        instance: Instance,
        *,
        stream: bool,
        read_timeout_s: float,
        finish: Finish,
    ) -> None:
        self.status: int = raw.status
        self.headers = raw.headers
        self.instance = instance
        self.attempts = 1
        self._raw = raw
        self._service = outgoing.service
        self._stream = stream
        self._read_timeout_s = read_timeout_s
        self._finish: Finish | None = finish
        self._data: bytes | None = None
        self._on_end: Callable[[], object] | None = None

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def on_end(self, action: Callable[[], object]) -> None:
        """Call `action` once the answer has been read, left or lost: at once when that has happened."""
        if self._finish is None:
            action()
        else:
            self._on_end = action

    @property
    def data(self) -> bytes:
        """The whole body; reads what is left of a streamed one."""
        if self._data is None:
            self._data = b"".join(self.iter_bytes())
        return self._data

    def json(self) -> Any:
        """The body as JSON. Raises ValueError when it is none."""
        return json.loads(self.data)

    def iter_bytes(self) -> Iterator[bytes]:
        """The body as it arrives, in pieces of at most 64 KiB. Content encodings are undone unless it is streamed."""
        if self._data is not None:
            yield self._data
            return
        self._limit_reads(self._read_timeout_s)
        try:
            while chunk := self._raw.read1(CHUNK_BYTES, decode_content=not self._stream):
                yield chunk
        except (HTTPError, OSError) as error:
            lost = translate(error, self._service, self.instance)
            self._end(lost, whole=False)
            raise lost from error
        except GeneratorExit:
            self.close()
            raise
        self._end(None, whole=True)

    def read_whole(self, max_bytes: int, remaining_s: Callable[[], float]) -> None:
        """Read the body into memory by a deadline. Raises ResponseLost, ResponseTimeout; ValueError when it is too long."""
        pieces: list[bytes] = []
        size = 0
        for chunk in self.iter_bytes():
            pieces.append(chunk)
            size += len(chunk)
            if size > max_bytes:
                self.close()
                raise ValueError(f"{self._service}: an answer of more than {max_bytes} bytes")
            left_s = remaining_s()
            if left_s <= 0:
                late = ResponseTimeout(self._service, "the body took too long", instance_id=self.instance.id)
                self._end(late, whole=False)
                raise late
            self._limit_reads(left_s)
        self._data = b"".join(pieces)

    def _limit_reads(self, seconds: float) -> None:
        connection = self._raw.connection
        sock = getattr(connection, "sock", None)
        if sock is not None:
            sock.settimeout(max(MIN_TIMEOUT_S, seconds))

    def close(self) -> None:
        """Leave the rest of the body unread. The connection is not used again, unless the body was read to its end."""
        self._end(None, whole=False)

    def _end(self, error: CallError | None, *, whole: bool) -> None:
        finish, self._finish = self._finish, None
        if finish is None:
            return
        with contextlib.suppress(Exception):
            if whole:
                self._raw.release_conn()
            else:
                self._raw.close()
        try:
            finish(error)
        finally:
            if self._on_end is not None:
                self._on_end()


class Transport:
    """Pools of connections, one for each instance's address. Thread-safe; no proxies, no redirects, no retries."""

    def __init__(self, *, connect_timeout_s: float, connections: int, clock: Clock) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._connections = connections
        self._clock = clock
        self._lock = threading.Lock()
        self._pools: dict[Address, urllib3.HTTPConnectionPool] = {}

    def send(
        self,
        outgoing: Outgoing,
        instance: Instance,
        *,
        timeout_s: float,
        stream: bool,
        read_timeout_s: float,
        finish: Finish,
    ) -> Response:
        """Send, and wait up to `timeout_s` for the head of the answer.

        `finish(error)` is called once when the answer has been read or left. Raises ConnectFailed, ResponseLost,
        ResponseTimeout; ValueError for a request that cannot be sent to anyone.
        """
        pool = self._pool((instance.address, instance.port))
        connect_s = max(MIN_TIMEOUT_S, min(self._connect_timeout_s, timeout_s))
        try:
            raw = pool.urlopen(
                outgoing.method,
                outgoing.target,
                body=outgoing.body,
                headers=outgoing.headers,
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=urllib3.Timeout(connect=connect_s, read=max(MIN_TIMEOUT_S, timeout_s)),
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError) as error:
            raise translate(error, outgoing.service, instance) from error
        return Response(raw, outgoing, instance, stream=stream, read_timeout_s=read_timeout_s, finish=finish)

    def _pool(self, address: Address) -> urllib3.HTTPConnectionPool:
        pool = self._pools.get(address)
        if pool is None:
            with self._lock:
                pool = self._pools.get(address)
                if pool is None:
                    host = f"[{address[0]}]" if ":" in address[0] else address[0]
                    # Not blocking: a burst opens further connections, which are closed afterwards.
                    pool = urllib3.HTTPConnectionPool(host, address[1], maxsize=self._connections)
                    self._pools[address] = pool
        return pool

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


def translate(error: Exception, service: str, instance: Instance) -> CallError:
    """urllib3's error as ours. Raises ValueError for what is the caller's own mistake."""
    detail = f"{instance.address}:{instance.port}: {type(error).__name__}"
    if isinstance(error, NewConnectionError | ConnectTimeoutError):
        return ConnectFailed(service, detail, instance_id=instance.id)
    if isinstance(error, ReadTimeoutError | TimeoutError):
        return ResponseTimeout(service, detail, instance_id=instance.id)
    if isinstance(error, ProtocolError | IncompleteRead | DecodeError | OSError):
        return ResponseLost(service, detail, instance_id=instance.id)
    raise ValueError(f"{service}: {error}") from error
