"""`run`: one instance of a service, from binding its port to leaving without losing a request.

    bind → migrate → fork the worker → its own /health/ready answers over HTTP → register in Consul
    SIGTERM or SIGINT → out of Consul → ready answers 503, all else is served for DRAIN_DELAY_S → stop accepting
    → open requests end within DRAIN_TIMEOUT_S → exit 0

All of it is driven by the master process, which has no thread beside; the worker only serves, and is started again when it dies.
"""

from __future__ import annotations

import atexit
import gc
import http.client
import math
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import gunicorn.http
import structlog
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from sqlalchemy.exc import SQLAlchemyError

import discovery
from discovery.contract import registration_meta
from discovery.errors import ContractError
from services.kit import early
from services.kit.app import needs_tokens
from services.kit.container import Kit
from services.kit.db.migrate import MigrationError
from services.kit.server.addresses import NoAddress, default_instance_id
from services.kit.server.worker import Parser, Request, ThreadWorker, bind_to_master, refusals
from services.kit.settings import secret
from services.kit.telemetry import logs
from services.kit.web.api import ServiceApp

log = structlog.get_logger(__name__)

# Connections that one worker of greenlets may have open, more than all that may wait at once: greenlets are cheap, and one that
# cannot be had keeps health checks out. As many may wait to be accepted: for one more the kernel drops the client's first
# packet, and the client tries again after 1, 3, 7 and 15 s.
CONNECTIONS = 4096
DESCRIPTORS = 16_384
# Objects allocated, and not freed, before Python looks for cycles among them (its own 700 are soon reached by one request).
GARBAGE = 20_000
# Longer than HAProxy keeps an idle connection to a server, so that it never writes into one that we are closing.
KEEPALIVE_S = 75
# What the agent on the same machine may take; while a master waits for it, it starts no worker and begins no drain.
CONNECT_S = 1.0
ANSWER_S = 2.0
POLL_S = 0.05
# gunicorn's warnings repeat the header field that it refuses.
MAX_LOGGED = 200


class GunicornLogger(Logger):
    """Leaves handlers to the kit's logging; access lines are written by `observe`."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.handlers[:] = []
        # "Handling signal", "Booting worker": worth a line at debug only; warnings and errors pass.
        self.error_log.setLevel("WARNING" if self.cfg.loglevel != "debug" else "DEBUG")

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        super().warning(msg[:MAX_LOGGED], *args, **kwargs)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        if isinstance(sys.exception(), TimeoutError):
            self.debug("the client takes nothing")
        else:
            super().exception(msg, *args, **kwargs)

    def access(self, *_: Any, **__: Any) -> None:
        return

    def reopen_files(self) -> None:
        return


class Registrar:
    """Registers the instance once it answers, keeps it registered, and takes it out when it is to leave: in turns between the
    master's waits for signals, each of which takes seconds at most.

    A thread would do it without holding the master up. But the master forks again whenever a worker has died, and a fork
    copies the locks that a thread holds without the thread (Python 3.12 warns of it; gRPC does not survive it).
    """

    def __init__(self, kit: Kit, port: int) -> None:
        self._kit = kit
        self._port = port
        settings = kit.settings
        api = discovery.ConsulApi(
            settings.consul_http_addr,
            secret(settings.consul_http_token),
            connect_timeout_s=CONNECT_S,
            read_timeout_s=ANSWER_S,
        )
        self._keepers = [discovery.Keeper(api, self._registration, ready=self._ready)]
        if kit.grpc_service is not None:
            self._keepers.append(discovery.Keeper(api, self._grpc_registration))

    def turn(self) -> float:
        """Do what is due; returns the seconds until there is more. Raises nothing."""
        pause_s = min(keeper.turn() for keeper in self._keepers)
        if self._kit.settings.worker_class == "gevent":
            import gevent

            # It looks names up, be they addresses, in threads of its own; they end here, and come again with the next.
            gevent.get_hub().threadpool.size = 0
        return pause_s

    def leave(self) -> None:
        """Take the instance out of Consul, which may take `CONNECT_S` and `ANSWER_S`, and as long again where it speaks gRPC.
        There is no turn after that."""
        for keeper in self._keepers:
            keeper.stop()

    def _registration(self) -> discovery.Registration | None:
        try:
            return self._kit.registration(self._port)
        except NoAddress:  # off its network, what was said last stays
            return None

    def _grpc_registration(self) -> discovery.Registration | None:
        """Where the worker said that it speaks gRPC; a new worker may have had to take another port."""
        port = self._kit.state.grpc_port
        try:
            return self._kit.grpc_registration(port) if port else None
        except NoAddress:
            return None

    def _ready(self) -> bool:
        connection = http.client.HTTPConnection(self._kit.settings.host, self._port, timeout=1.0)
        try:
            connection.request("GET", "/health/ready")
            answer = connection.getresponse()
            ready = answer.status == 200 and answer.getheader("X-Service") == self._kit.name
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if ready:
            log.info("instance ready", port=self._port)
        return ready


class ServiceArbiter(Arbiter):
    """gunicorn's master with our way of leaving. One worker; what would change that is ignored."""

    def __init__(self, app: Any, kit: Kit, registrar: Registrar) -> None:
        self._kit = kit
        self.registrar = registrar
        super().__init__(app)

    def wait_for_signals(self, timeout: float = 1.0) -> Any:
        return super().wait_for_signals(min(timeout, self.registrar.turn()))

    def handle_term(self) -> None:
        """Drain, then stop. A further SIGTERM or SIGINT changes nothing; SIGQUIT ends it at once."""
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_IGN)
        settings = self._kit.settings
        log.info("draining", delay_s=settings.drain_delay_s, timeout_s=settings.drain_timeout_s)
        self.registrar.leave()
        self._kit.state.drain()
        until = time.monotonic() + settings.drain_delay_s
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, POLL_S))
            self.reap_workers()
            self.manage_workers()
        raise StopIteration

    handle_int = handle_term

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        self.registrar.leave()
        super().halt(reason=reason, exit_status=exit_status)

    def handle_usr2(self) -> None:
        """No second master: the port and the Consul entry belong to this one."""

    handle_ttin = handle_ttou = handle_hup = handle_usr2


class Server(BaseApplication):
    """gunicorn's configuration of an instance."""

    def __init__(self, app: ServiceApp, kit: Kit, listener: socket.socket) -> None:
        self._app = app
        self._kit = kit
        self._listener = listener
        super().__init__()

    def load(self) -> ServiceApp:
        return self._app

    def load_config(self) -> None:
        settings = self._kit.settings
        options = {
            # gunicorn closes the descriptor that it is given.
            "bind": f"fd://{os.dup(self._listener.fileno())}",
            "workers": 1,
            "worker_class": _worker_class(settings.worker_class),
            "threads": settings.worker_threads,
            "worker_connections": CONNECTIONS if settings.worker_class == "gevent" else 1000,
            "backlog": CONNECTIONS,
            "keepalive": KEEPALIVE_S,
            "timeout": 60,
            "graceful_timeout": math.ceil(settings.drain_timeout_s),
            "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,  # noqa: S108
            "logger_class": GunicornLogger,
            "loglevel": settings.log_level,
            "proc_name": self._kit.instance_id,
            "control_socket_disable": True,
            # What a request says about itself does not count: SCRIPT_NAME would move its path.
            "forwarder_headers": "",
            "forwarded_allow_ips": "",
            "secure_scheme_headers": {},
            "limit_request_line": 8190,
            "limit_request_fields": 100,
            # Cookies of 32 KiB pass.
            "limit_request_field_size": 36 * 1024,
            "post_fork": lambda arbiter, _: bind_to_master(arbiter.pid),
            "post_worker_init": lambda _: self._started(),
            "worker_exit": lambda _, worker: self._stopped(worker.pid),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def _stopped(self, worker_pid: int) -> None:
        # gunicorn's master calls this as well, for a worker that it has lost.
        if worker_pid == os.getpid():
            self._kit.stopped()

    def _started(self) -> None:
        if needs_tokens(self._app):
            self._kit.follow_auth()
        self._kit.started()
        gc.freeze()
        gc.set_threshold(GARBAGE, *gc.get_threshold()[1:])


def _worker_class(kind: str) -> Any:
    if kind == "gevent":
        from services.kit.server.gevent_worker import GeventWorker

        return GeventWorker
    return ThreadWorker


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError; the text names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(CONNECTIONS)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def _allow_descriptors() -> None:
    """As many connections as a worker takes need as many descriptors, and often as many again: the usual 1024 are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def in_child(work: Callable[[], object]) -> None:
    """Run `work` in a process of its own: what it imports and allocates (a migration: 20 MB) goes with it.

    Where it fails, this process ends as that one did.
    """
    master_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            bind_to_master(master_pid)
            work()
            code = 0
        except SystemExit as end:
            print(end.code, file=sys.stderr, flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(abs(os.waitstatus_to_exitcode(status)))


def run(app: ServiceApp | Callable[[], ServiceApp]) -> None:
    """Serve one instance until it is stopped, then exit the process: 0 after a drain, another code after an error.

    Takes an application or something that makes one. Must be called in the main thread.
    """
    try:
        app = app if isinstance(app, ServiceApp) else app()
    except ContractError as error:
        sys.exit(f"cannot start: {error}")
    kit: Kit = app.extensions["kit"]
    settings = kit.settings
    if settings.worker_class == "gevent" and not early.PATCHED:
        early.begin_again()
    listener = _listen(kit)
    port = listener.getsockname()[1]
    if settings.instance_id is None:
        kit.instance_id = default_instance_id(kit.name, settings.host, port)
    logs.configure(kit.name, settings.log_level, settings.log_format, instance_id=kit.instance_id)
    try:
        registration_meta(kit.registration(port))
        if kit.grpc_service is not None:
            registration_meta(kit.grpc_registration(port))
    except (ContractError, NoAddress) as error:
        sys.exit(f"{kit.name}: cannot be registered: {error}")
    in_child(lambda: _migrate(kit))
    _allow_descriptors()
    util.write_error = refusals(kit.name)
    gunicorn.http.RequestParser = Parser
    Request.head_within_s = settings.body_timeout_s
    arbiter = ServiceArbiter(Server(app, kit, listener), kit, Registrar(kit, port))
    listener.close()
    # A worker shares what is there now with its master, as long as neither writes to it: and a collection writes to every object
    # that it looks at. In a worker it would also cost a tenth of all requests' time.
    kit.db.url.get_dialect()
    gc.collect()
    gc.freeze()
    # At the end it is collected before modules go, or what they still need is reported on standard error.
    atexit.register(gc.unfreeze)
    arbiter.run()


def _listen(kit: Kit) -> socket.socket:
    settings = kit.settings
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        sys.exit(f"{kit.name}: {error}")
    # Connections inherit it, whatever their worker waits with. It counts while nothing goes out, not for all of an answer.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(settings.unread_timeout_s * 1000))
    return listener


def _migrate(kit: Kit) -> None:
    try:
        kit.db.migrate()
    except (MigrationError, SQLAlchemyError, OSError) as error:
        sys.exit(f"{kit.name}: database not ready: {error}")
