"""Calls by gRPC to services by name, over their instances: what `kit().grpc` gives.

What stands around a call is the guard's, as for HTTP: deadline, breaker, retry budget, choice of the instance, ejection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc

import discovery
from discovery.calls.guard import Attempt, Call, Guard
from discovery.errors import CallError
from discovery.resilience.patience import Patience
from services.kit import early
from services.kit.calls.client import VIEW_WAIT_S, CallObserver
from services.kit.grpc.codes import REQUEST_ID, answered, no_answer, outcome_of
from services.kit.grpc.lines import Line, Lines
from services.kit.server.addresses import grpc_name
from services.kit.telemetry.metrics import Metrics
from services.kit.web import context

S = TypeVar("S")
# How the names of methods begin that only read: they may run twice.
READS = ("Get", "BatchGet", "List")
Metadata = Sequence[tuple[str, str]]


class GrpcClient:
    """Gives stubs. Thread-safe, and works under gevent; to be made in the process that calls.

    `token_source` gives the bearer token of calls that bring no `authorization` of their own, within the seconds it is asked with.
    """

    def __init__(
        self,
        view: Callable[[], discovery.View | discovery.StaticView],
        metrics: Metrics,
        token_source: Callable[[float], str | None] | None = None,
        *,
        settings: discovery.ClientSettings | None = None,
    ) -> None:
        if early.PATCHED:
            # Without it the first call stops every greenlet of the process for as long as it takes.
            import grpc.experimental.gevent

            grpc.experimental.gevent.init_gevent()
        self._view = view
        self.settings = settings or discovery.ClientSettings()
        self._token_source = token_source
        self.lines = Lines(self.settings.connect_timeout_s, self.settings.max_body_bytes)
        observer = CallObserver(metrics)
        self.guard = Guard(view(), self.settings, discovery.SYSTEM_CLOCK, observer, self.lines.drop_gone)
        self._lock = threading.Lock()
        self._stubs: dict[Any, Any] = {}

    def stub(self, service: str, make: Callable[[grpc.Channel], S], repeatable: Collection[str] = ()) -> S:
        """A stub of generated code, for the service of that name: see `Kit.grpc`."""
        key = (service, make, frozenset(repeatable))
        with self._lock:
            if key not in self._stubs:
                self._stubs[key] = make(_Channel(self, grpc_name(service), key[2]))
        found: S = self._stubs[key]
        return found

    def wait_for_view(self, within_s: float) -> None:
        view = self._view()
        if isinstance(view, discovery.View) and not view.ready(0):
            view.ready(min(VIEW_WAIT_S, within_s))

    def authorize(self, metadata: list[tuple[str, str]], left_s: float) -> None:
        token = self._token_source(left_s) if self._token_source is not None else None
        if token:
            metadata.append(("authorization", f"Bearer {token}"))


@dataclass(frozen=True, slots=True)
class _Method:
    """One method of a service, as generated code describes it to its channel."""

    client: GrpcClient
    service: str
    path: str
    serialize: Callable[[Any], bytes]
    deserialize: Callable[[bytes], Any]
    twice: bool
    stream: bool

    def __call__(self, request: Any, timeout: float | None = None, metadata: Metadata | None = None) -> Any:
        """The answer, or a `Stream` of them. `timeout` (seconds) is cut to what the current request has left.

        Raises grpc.RpcError with the code of an answer that is no success, CallError where there was no answer.
        """
        began = time.monotonic()
        data = self.serialize(request)
        settings = self.client.settings
        usual_s = given_s = settings.deadline_s if timeout is None else timeout
        sent = [(key.lower(), value) for key, value in metadata or ()]
        caller = context.peek()
        if caller is not None:
            given_s = min(given_s, caller.remaining_s())
            sent += [(REQUEST_ID, caller.request_id), ("traceparent", caller.traceparent)]
        self.client.wait_for_view(given_s)
        most_s = given_s if self.stream else settings.attempt_timeout_s
        patience = Patience(most_s, usual_s, settings.patience_s, shares=not self.stream)
        name = self.path.rpartition("/")[2]
        call = Call(self.service, name, began, began + given_s, patience, self.twice, self.stream)
        if not any(key == "authorization" for key, _ in sent):
            call.prepare = partial(self.client.authorize, sent)
        send = self._begin if self.stream else self._send
        return self.client.guard.run(call, partial(send, data, sent)).result()

    def _send(self, data: bytes, sent: Metadata, attempt: Attempt) -> _Reply:
        """One attempt at a single answer."""
        instance, lines = attempt.instance, self.client.lines
        line = lines.take(instance, attempt.timeout_s)
        broken = False
        try:
            method = line.method(self.path, self.deserialize, stream=False)
            return _Reply(200, method(data, timeout=attempt.timeout_s, metadata=sent))
        except grpc.RpcError as error:
            broken = _breaks(error)
            return _Reply(outcome_of(error, self.service, instance.id), error=error)
        finally:
            lines.release(line, broken=broken)

    def _begin(self, data: bytes, sent: Metadata, attempt: Attempt) -> _Reply:
        """One attempt at a stream: until its first message is there, another instance may be asked."""
        instance, lines = attempt.instance, self.client.lines
        line = lines.take(instance, attempt.left_s)
        stream = Stream(self.service, lines, line, attempt)
        try:
            method = line.method(self.path, self.deserialize, stream=True)
            stream.begin(method(data, timeout=attempt.left_s, metadata=sent))
        except grpc.RpcError as error:
            stream.end(broken=_breaks(error))
            return _Reply(outcome_of(error, self.service, instance.id), error=error)
        except BaseException:
            stream.close()
            raise
        return _Reply(200, stream)


class _Reply:
    """What an attempt brought, in the guard's terms: an answer, or an error that is one."""

    __slots__ = ("_answer", "_error", "attempts", "status")

    def __init__(self, status: int, answer: Any = None, *, error: grpc.RpcError | None = None) -> None:
        self.status = status
        self.attempts = 0
        self._answer = answer
        self._error = error

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._answer

    def close(self) -> None:
        """No status that is tried again comes with anything open."""


class Stream(Iterator[Any]):
    """The messages of one answer: to be read to the end, or closed. Its deadline holds for all of it.

    Reading raises grpc.RpcError where the instance ends it with an error, CallError where it breaks off.
    """

    def __init__(self, service: str, lines: Lines, line: Line, attempt: Attempt) -> None:
        self._service = service
        self._lines = lines
        self._line = line
        self._attempt = attempt
        self._messages: Any = None
        self._first: list[Any] = []
        self._over = False

    def begin(self, messages: Any) -> None:
        """Wait for the first message, or the end. Raises grpc.RpcError."""
        self._messages = messages
        for first in messages:
            self._first.append(first)
            return
        self.end()

    def __next__(self) -> Any:
        if self._first:
            return self._first.pop()
        if self._over:
            raise StopIteration
        try:
            return next(self._messages)
        except StopIteration:
            self.end()
            raise
        except grpc.RpcError as error:
            lost = no_answer(error, self._service, self._attempt.instance.id)
            self.end(lost, broken=_breaks(error))
            if lost is not None:
                raise lost from error
            raise

    def end(self, error: CallError | None = None, *, broken: bool = False) -> None:
        if not self._over:
            self._over = True
            self._lines.release(self._line, broken=broken)
            self._attempt.finish(error)

    def close(self) -> None:
        """Leave what is still to come."""
        self._first.clear()
        if self._messages is not None and not self._over:
            self._messages.cancel()
        self.end()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _breaks(error: grpc.RpcError) -> bool:
    """Whether the connection has failed, as far as can be told."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and not answered(error)


class _Channel(grpc.Channel):
    """What generated code takes for a channel: it asks it for a callable for each of its methods."""

    def __init__(self, client: GrpcClient, service: str, repeatable: frozenset[str]) -> None:
        self._client = client
        self._service = service
        self._repeatable = repeatable

    def _method(self, path: str, serialize: Any, deserialize: Any, *, stream: bool) -> Any:
        name = path.rpartition("/")[2]
        twice = name.startswith(READS) or name in self._repeatable
        return _Method(self._client, self._service, path, serialize, deserialize, twice, stream)

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        return self._method(method, request_serializer, response_deserializer, stream=False)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        return self._method(method, request_serializer, response_deserializer, stream=True)

    def stream_unary(self, method: str, *_: Any, **__: Any) -> Any:
        return partial(_no_client_stream, method)

    def stream_stream(self, method: str, *_: Any, **__: Any) -> Any:
        return partial(_no_client_stream, method)

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        """There is no one connection whose state could be told."""

    def unsubscribe(self, callback: Any) -> None:
        pass

    def close(self) -> None:
        """The lines are the client's, and shared."""


def _no_client_stream(method: str, *_: Any, **__: Any) -> Any:
    raise NotImplementedError(f"{method}: a stream of requests cannot be sent again to another instance")
