"""gRPC on a port of its own beside a service's HTTP, in the same worker: `serve_grpc` in the service's `__main__`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from discovery.model import Route
from services.kit.container import Kit, State
from services.kit.grpc.incoming import Incoming
from services.kit.server.addresses import grpc_name
from services.kit.server.run import listen
from services.kit.web.api import ServiceApp

log = structlog.get_logger(__name__)

# Calls under way or waiting for a thread; one more is RESOURCE_EXHAUSTED.
MOST_CALLS = 256
# One connection's share of them; its client keeps the others back.
MOST_STREAMS = 100
# A client whose machine has gone says nothing: it is asked after a minute, and has 20 s.
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
HEALTH_METHOD = "/grpc.health.v1.Health/Check"


class Health(health.HealthServicer):  # type: ignore[misc]
    """Health of the service and of this instance by its name in Consul; not serving while the instance drains."""

    def __init__(self, state: State, names: tuple[str, ...], pool: ThreadPoolExecutor) -> None:
        super().__init__(experimental_thread_pool=pool)
        setattr(Health.Check, "experimental_thread_pool", pool)  # noqa: B010 - a function has no such attribute for mypy
        self._state = state
        for name in names:
            self.set(name, health_pb2.HealthCheckResponse.SERVING)

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's spelling
        answer = super().Check(request, context)
        if answer.status and self._state.draining:
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)
        return answer


class GrpcServer:
    """The server of one worker. Threads of its own, so that neither kind of call holds up the other."""

    def __init__(
        self, app: ServiceApp, service: ServiceDescriptor, register: Callable[[grpc.Server], object]
    ) -> None:
        self._app = app
        self._kit: Kit = app.extensions["kit"]
        self._service = service
        self._register = register
        self._server: grpc.Server | None = None

    def start(self) -> None:
        """Listen, and let the master know where. Raises RuntimeError where GRPC_PORT is another's."""
        settings, state = self._kit.settings, self._kit.state
        threads = ThreadPoolExecutor(settings.worker_threads, thread_name_prefix="grpc")
        self._server = server = grpc.server(
            threads,
            interceptors=[Incoming(self._app)],
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_concurrent_streams", MOST_STREAMS),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
                # Two instances at one port would each get half of the calls of both.
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=MOST_CALLS,
        )
        self._register(server)
        self._add_own(server)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        # A worker that takes another's place takes its port as well, if it can: the master need not register it anew.
        state.grpc_port = _bind(
            server, host, settings.grpc_port or state.grpc_port, fixed=settings.grpc_port > 0
        )
        server.start()
        log.info("grpc ready", port=state.grpc_port)

    def stop(self) -> None:
        """Take no new calls, and let those under way end within DRAIN_TIMEOUT_S."""
        if self._server is not None:
            self._server.stop(self._kit.settings.drain_timeout_s).wait()

    def _add_own(self, server: grpc.Server) -> None:
        # A thread of its own: while all others wait for the database, Consul is to hear that the instance lives.
        names = (self._service.full_name, grpc_name(self._kit.instance_id))
        own = Health(self._kit.state, names, ThreadPoolExecutor(1, thread_name_prefix="grpc-health"))
        health_pb2_grpc.add_HealthServicer_to_server(own, server)
        if self._kit.settings.grpc_reflection:
            from grpc_reflection.v1alpha import reflection

            shown = (self._service.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(shown, server)


def _bind(server: grpc.Server, host: str, port: int, *, fixed: bool) -> int:
    try:
        return server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        if fixed or not port:
            raise
        return server.add_insecure_port(f"{host}:0")


def serve_grpc(
    app: ServiceApp, service: ServiceDescriptor, register: Callable[[Any, grpc.Server], object], servicer: Any
) -> None:
    """Have the app's instances answer a service of gRPC as well: to be called before `run`.

    `service` is its descriptor and `register` the `add_…Servicer_to_server` of the generated code. Methods may raise Problem and
    ask for scopes as views do; every call has a token. It is registered as `<name>-grpc`, and has a route at the edge,
    `/<package>.<Service>`, with `GRPC_EDGE`. Ends the process where that cannot be.
    """
    kit: Kit = app.extensions["kit"]
    settings = kit.settings
    if settings.worker_class == "gevent":
        sys.exit(f"{kit.name}: it answers gRPC, which needs threads: WORKER_CLASS=gthread")
    if settings.grpc_port:
        try:
            listen(settings.host, settings.grpc_port).close()
        except OSError as error:
            sys.exit(f"{kit.name}: GRPC_PORT: {error}")
    kit.grpc_service = service.full_name
    if settings.grpc_edge:
        kit.grpc_route = Route(
            grpc_name(kit.name),
            (f"/{service.full_name}",),
            domain=kit.route.domain if kit.route is not None else "business",
            check=HEALTH_METHOD,
            check_identity=False,
            protocol="h2c",
        )
    server = GrpcServer(app, service, lambda made: register(servicer, made))
    kit.on_start(server.start)
    kit.on_stop(server.stop)
