"""Around every call that a service answers by gRPC, as the middleware is around HTTP: ids, deadline, identity, errors, metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from services.kit.auth.require import identify
from services.kit.container import Kit
from services.kit.grpc.codes import CLIENT_LEFT, REQUEST_ID, code_of, status_of
from services.kit.telemetry import logs
from services.kit.web.api import ServiceApp
from services.kit.web.context import Caller, child_of, request_id, set_current
from services.kit.web.problems import Problem, problem_of

# Asked without a token: by Consul, and by developers where reflection is on.
OPEN = ("/grpc.health.", "/grpc.reflection.")


class Incoming(grpc.ServerInterceptor):
    """Wraps the methods of a service. Those that take a stream of requests are refused: nothing here needs one yet."""

    def __init__(self, app: ServiceApp) -> None:
        self._app = app
        self._kit: Kit = app.extensions["kit"]

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None or details.method.startswith(OPEN):
            return handler
        if handler.request_streaming:
            return None
        how = (handler.request_deserializer, handler.response_serializer)
        if handler.response_streaming:
            several = self._several(details.method, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(several, *how)
        return grpc.unary_unary_rpc_method_handler(self._single(details.method, handler.unary_unary), *how)

    def _single(self, name: str, method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            with self._serving(name, context):
                return method(request, context)

        return answer

    def _several(self, name: str, method: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._serving(name, context) as caller:
                # A client that takes nothing more would hold the thread, whatever it said of a deadline.
                over = threading.Timer(caller.remaining_s(), context.cancel)
                over.daemon = True
                over.start()
                try:
                    yield from method(request, context)
                finally:
                    over.cancel()

        return answer

    @contextmanager
    def _serving(self, name: str, context: grpc.ServicerContext) -> Iterator[Caller]:
        """One call. Whatever is raised within becomes its status, and its text: that of a problem, and nothing else."""
        began = time.perf_counter()
        sent = _texts(context)
        left_s = context.time_remaining()
        most_s = self._kit.settings.deadline_s
        caller = Caller(
            request_id(sent.get(REQUEST_ID)),
            child_of(sent.get("traceparent")),
            time.monotonic() + (most_s if left_s is None else min(left_s, most_s)),
            route=name,
        )
        set_current(caller)
        context.set_trailing_metadata(((REQUEST_ID, caller.request_id),))
        self._kit.metrics.in_progress.inc()
        status = CLIENT_LEFT
        try:
            with self._app.app_context():
                _admit(caller, sent.get("authorization"))
                yield caller
            status = _said(context, 200)
        except Exception as error:
            # `context.abort` raises as well, once it has set its code.
            status = _said(context, 0)
            if status:
                raise
            status, text = _said_of(error)
            # A circle of its frames and itself would keep the call open until it is collected.
            error.__traceback__ = None
            context.abort(code_of(status), text)
        finally:
            self._finish(caller, status, time.perf_counter() - began)

    def _finish(self, caller: Caller, status: int, duration_s: float) -> None:
        self._kit.metrics.in_progress.dec()
        self._kit.metrics.observe("GRPC", caller.route, status, duration_s)
        line = {
            "method": "GRPC",
            "route": caller.route,
            "status": status,
            "duration_s": round(duration_s, 6),
            "subject": caller.subject,
        }
        logs.request_lines.write("info", caller, line)
        set_current(None)


def _admit(caller: Caller, authorization: str | None) -> None:
    """Every call says whose it is. Raises Problem."""
    if caller.remaining_s() <= 0:
        raise Problem(504, detail="The time for this call is over.")
    if authorization is None:
        raise Problem(403, detail="A bearer token is needed.")
    identify(authorization)


def _texts(context: grpc.ServicerContext) -> dict[str, str]:
    """The metadata; what came several times joined by commas, as HTTP has it, so that two tokens are none."""
    found: dict[str, str] = {}
    for key, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            found[key] = f"{found[key]}, {value}" if key in found else value
    return found


def _said_of(error: Exception) -> tuple[int, str]:
    problem = problem_of(error)
    return problem.status, problem.detail or problem.title


def _said(context: Any, otherwise: int) -> int:
    """The status of the code that a method has set itself."""
    code = context.code()
    return otherwise if code in (None, 0) else status_of(code)
