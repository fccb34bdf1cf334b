"""The controller as a process: one lock, the threads around the loop, and their end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import structlog

from discovery.consul.api import ConsulApi
from discovery.consul.catalog import View
from discovery.model import Change, Snapshot
from haproxy.controller.config.model import EdgeState, Server
from haproxy.controller.config.template import prepare_files
from haproxy.controller.consul.owners import AGREED, PINS, Document, Proposer
from haproxy.controller.consul.verdicts import VerdictWriter
from haproxy.controller.errors import ConfigRefused, EdgeError
from haproxy.controller.loop.reload import Reloader, check_config
from haproxy.controller.loop.steady import PAUSE_S, Health, survives
from haproxy.controller.loop.sync import Sync
from haproxy.controller.metrics import Metrics
from haproxy.controller.request_log import RequestLog
from haproxy.controller.runtime.reaper import Reaper
from haproxy.controller.runtime.socket import Master, Runtime
from haproxy.controller.settings import EdgeSettings
from haproxy.controller.wanted.auth_poll import SERVICE as AUTH
from haproxy.controller.wanted.election import Desire
from haproxy.controller.wanted.jwks import KeyPoll, stored_keys
from haproxy.controller.wanted.ownership import OwnerBook
from haproxy.controller.wanted.revocations import RevocationPoll

log = structlog.get_logger(__name__)


class AlreadyRunning(EdgeError):
    """Another controller holds the lock of this edge."""


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the edge's lock. The kernel gives it back when the process ends, however it ends. Raises AlreadyRunning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            raise AlreadyRunning(f"a controller (pid {holder}) already runs here: {path} is locked") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def owner_book(settings: EdgeSettings) -> OwnerBook:
    """The memory of owners of this edge, read from its file."""
    book = OwnerBook(settings.edge_dir.absolute() / "owners.json", settings.edge_route_memory_s)
    book.load()
    return book


def consul_api(settings: EdgeSettings) -> ConsulApi:
    """Consul as this controller may ask it. Raises OSError for an unreadable token file."""
    return ConsulApi(settings.consul_http_addr, settings.consul_token())


def initialise(settings: EdgeSettings) -> bool:
    """Make sure that HAProxy can start: a valid configuration, certificate and error pages. False: there was one.

    What is remembered from former runs goes into it, so that known routes answer 503 rather than 404 from the start.
    Raises ConfigRefused, OSError.
    """
    for folder in (settings.edge_dir, settings.edge_run_dir):
        folder.mkdir(parents=True, exist_ok=True)
    reloader = Reloader(settings, Runtime(settings.runtime_socket), Master(settings.master_socket))
    prepare_files(EdgeState(), settings)
    if settings.config_path.exists() and reloader.written_for_these_settings():
        try:
            check_config(settings.config_path, settings.haproxy_binary)
        except ConfigRefused as error:
            log.warning("configuration at hand is not valid, writing another", error=str(error))
        else:
            return False
    desire = Desire(settings.policy(), owner_book(settings))
    try:
        reloader.write(desire.state(stored_keys(settings.keys_dir), {}))
    except ConfigRefused as error:
        log.error("what is remembered makes no valid configuration, starting empty", error=str(error))
        reloader.write(EdgeState())
    return True


class Controller:
    """Everything that runs beside the loop, and the loop. `run` returns after `stop`."""

    def __init__(self, settings: EdgeSettings) -> None:
        self.metrics = Metrics()
        self.health = Health()
        self.health.wrong("consul", "has not been heard yet")
        self._settings = settings
        self._api = consul_api(settings)
        self._view = View(self._api)
        runtime = Runtime(settings.runtime_socket)
        reloader = Reloader(settings, runtime, Master(settings.master_socket))
        self.sync = Sync(
            settings,
            owner_book(settings),
            runtime,
            reloader,
            self.metrics,
            self.health,
            stored_keys(settings.keys_dir),
        )
        self._pins = Document(self._api, PINS, "pins", self.sync.inbox.pins, self.metrics)
        self._agreed = Document(self._api, AGREED, "owners", self.sync.inbox.owners, self.metrics)
        self._proposer = Proposer(self._api, self.metrics, self.health)
        self.sync.propose = self._proposer.propose
        self._verdicts = VerdictWriter(self._api, settings.edge_name, self.metrics, self.health)
        self._keys = KeyPoll(
            settings.keys_dir,
            self._auth_servers,
            self.sync.inbox.keys,
            self.metrics,
            self.health,
            settings.edge_keys_s,
        )
        self._revocations = RevocationPoll(settings, self._auth_servers, runtime, self.metrics, self.health)
        self.sync.on_reload = self._keys.prune
        self._reaper = Reaper(runtime, self.health)
        file = settings.edge_log_file
        self._request_log = RequestLog(settings.log_socket, file, self.health) if file else None
        self.sync.busy = lambda: self._reaper.busy
        # Each with a thread of its own beside the loop.
        self._beside = (self._pins, self._agreed, self._proposer, self._keys, self._revocations)
        self._stopped = False

    def _auth_servers(self) -> list[Server]:
        return list(self.sync.desire.servers(AUTH).values())

    def stop(self) -> None:
        """End the loop soon; may be called from a signal handler: no lock is taken."""
        self._stopped = True
        self.sync.inbox.wake.ring()

    def run(self) -> None:
        """Follow Consul until `stop`. Raises OSError when the port for metrics is in use."""
        settings = self._settings
        stop_metrics = self.metrics.serve(
            settings.controller_bind_address, settings.controller_port, self._view.age_s, self.health
        )
        try:
            if self._request_log is not None:
                self._request_log.start()
            self._reaper.start()
            self._view.on_change(self._changed)
            self._view.start()
            if self._await_view():
                self._follow()
        finally:
            self._view.stop()
            for part in self._beside:
                part.stop()
            self._reaper.stop()
            if self._request_log is not None:
                self._request_log.stop()
            self.sync.stop()
            self._verdicts.stop()
            self._api.close()
            stop_metrics()

    def _changed(self, changes: list[Change], snapshot: Snapshot) -> None:
        self.sync.inbox.changed(changes, snapshot)
        if any(change.service == AUTH for change in changes):
            self._keys.look()

    def _await_view(self) -> bool:
        """Until Consul has been heard once: before that there is nothing to be in step with, and HAProxy serves on."""
        logged = False
        while not self._stopped:
            if self._view.ready(0.2):
                return True
            if not logged:
                log.info("waiting for consul", address=self._settings.consul_http_addr)
                logged = True
        return False

    def _follow(self) -> None:
        self.sync.inbox.take()
        self.sync.begin(self._view.snapshot(), self._pins.read(), self._agreed.read())
        self._verdicts.start()
        for part in self._beside:
            part.start()
        log.info("following consul", edge=self._settings.edge_name, consul=self._settings.consul_http_addr)
        self.health.well("consul")
        while not self._stopped:
            if survives("loop", self._turn, self.health):
                self.sync.wait()
            else:
                self.sync.inbox.wake.wait(PAUSE_S)

    def _turn(self) -> None:
        self.sync.turn()
        services, self.sync.to_report = self.sync.to_report, set()
        if services:
            self._verdicts.submit({service: self.sync.outcome(service) for service in services})


def run(settings: EdgeSettings) -> None:
    """One controller until SIGTERM or SIGINT. Raises AlreadyRunning, OSError, ContractError."""
    # The loop must not wait 5 ms for the interpreter while another thread renders the file.
    sys.setswitchinterval(0.001)
    with only_one(settings.lock_file):
        for left in settings.edge_dir.glob(".*.cfg.*"):  # by a controller that was killed
            left.unlink(missing_ok=True)
        initialise(settings)
        controller = Controller(settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: controller.stop())
        controller.run()
        log.info("controller ended")
