"""What a service gets from the kit, in one object: `app.extensions["kit"]`, or `kit()` inside of a request."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

import structlog
from flask import current_app
from redis import Redis
from sqlalchemy import MetaData

import discovery
from discovery.model import GrpcCheck, HttpCheck, Registration, Route
from services.kit.auth.jwks import KeySet
from services.kit.auth.revocations import Revocations
from services.kit.auth.service_token import DEADLINE_S, TokenSource
from services.kit.auth.verifier import TokenVerifier
from services.kit.calls.client import JWKS_PATH, REVOCATIONS_PATH, Upstreams, fetch_document
from services.kit.db.jobs import Jobs
from services.kit.db.session import Database, database_url
from services.kit.events.brokers import broker_of
from services.kit.events.events import Events
from services.kit.events.tables import event_tables
from services.kit.redis_client import connect
from services.kit.server.addresses import NoAddress, default_instance_id, grpc_name, own_address
from services.kit.settings import ServiceSettings, secret
from services.kit.stale.decorator import StaleAnswers
from services.kit.stale.writer import StaleQueue
from services.kit.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from services.kit.grpc.client import GrpcClient

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Of background writes; no request waits for them.
BACKGROUND_TIMEOUT_S = 0.5
# How long the end of a worker waits for the turn of a job: longer than a delivery takes.
JOB_END_S = 3.0
PURGE_S = 600.0
# How long a worker that checks tokens waits for auth's keys before it serves.
FIRST_KEYS_S = 3.0


class lazily(Generic[T]):  # noqa: N801 - reads as a decorator
    """A property that is worked out once, at first use, under the object's `_lock` (an RLock)."""

    def __init__(self, make: Callable[[Any], T]) -> None:
        self._make = make
        self._name = make.__name__
        self.__doc__ = make.__doc__

    def __get__(self, owner: Any, _: type | None = None) -> T:
        with owner._lock:
            values: dict[str, T] = owner.__dict__
            if self._name not in values:
                values[self._name] = self._make(owner)
            return values[self._name]


class State:
    """What an instance's master and its worker tell each other, in memory that both share: made before the fork.

    Whether the instance drains, which the master sets and the worker's `/health/ready` reads; and the port that the worker speaks
    gRPC at (0: none yet), which the master registers.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 3)

    @property
    def draining(self) -> bool:
        return self._memory[0] == 1

    def drain(self) -> None:
        """From now on this instance wants no new work."""
        self._memory[0] = 1

    @property
    def grpc_port(self) -> int:
        return int.from_bytes(self._memory[1:3], "big")

    @grpc_port.setter
    def grpc_port(self, port: int) -> None:
        self._memory[1:3] = port.to_bytes(2, "big")


class Kit:
    """The parts of one service. Connections are made at first use, in the worker process, never before its fork."""

    def __init__(
        self,
        name: str,
        settings: ServiceSettings,
        route: Route | None,
        metadata: MetaData | None = None,
        migrations: Path | None = None,
        *,
        calls: Iterable[str] | None = None,
        client: discovery.ClientSettings | None = None,
        events: bool = False,
    ) -> None:
        self.name = name
        self.settings = settings
        self.route = route
        # auth has the keys that tokens are checked with, and the service's own.
        asked = None if calls is None else set(calls)
        self._calls = None if asked is None else {"auth", *asked, *map(grpc_name, asked)}
        self._client_settings = client
        self.state = State()
        self.metrics = Metrics(name)
        self.jobs = Jobs()
        self._on_start: list[Callable[[], object]] = []
        self._on_stop: list[Callable[[], object]] = []
        # What it answers by gRPC, `package.Service`, and how that stands at the edge: set by `serve_grpc`.
        self.grpc_service: str | None = None
        self.grpc_route: Route | None = None
        self.instance_id = settings.instance_id or default_instance_id(name, settings.host, settings.port)
        if events and metadata is None:
            raise ValueError(f"{name}: events need a database; give models_metadata")
        self._event_tables = event_tables(metadata) if events and metadata is not None else None
        self.db = Database(
            database_url(settings, name),
            metadata=metadata,
            migrations=migrations,
            pool_size=min(settings.db_pool_size, settings.threads_to_wait() or settings.db_pool_size),
            timeout_s=settings.db_timeout_s,
        )
        self._lock = threading.RLock()

    @lazily
    def redis_state(self) -> Redis | None:
        """The Redis for state that must not be evicted, or None without `REDIS_STATE_URL`. Its errors become 503."""
        return self._redis(self.settings.redis_state_url, self.settings.redis_state_timeout_s)

    @lazily
    def stale(self) -> StaleAnswers:
        """The last good answers that `@stale_if_error` keeps; without `REDIS_CACHE_URL` none."""
        redis = self._redis(self.settings.redis_cache_url, BACKGROUND_TIMEOUT_S)
        queue = StaleQueue(redis, outcomes=self.metrics.stale) if redis is not None else None
        return StaleAnswers(self.name, queue)

    @lazily
    def events(self) -> Events:
        """Publishing and consuming events. Raises LookupError for a service that was made without `events=True`."""
        if self._event_tables is None:
            raise LookupError(f"{self.name} has no events: create_service(…, events=True)")
        broker, waiting = broker_of(self.settings, self.instance_id), self.metrics.events_waiting
        return Events(self.db, self._event_tables, self.name, self.instance_id, broker, waiting)

    @lazily
    def tokens(self) -> TokenVerifier:
        """Verifies access tokens with auth's keys."""
        settings = self.settings
        if self.revocations is not None:
            self.revocations.start()
        return TokenVerifier(
            KeySet(lambda: fetch_document(self._plain, JWKS_PATH, settings.auth_jwks_url)),
            issuer=settings.auth_issuer,
            audience=settings.auth_audience,
            revocations=self.revocations,
        )

    @lazily
    def revocations(self) -> Revocations | None:
        """auth's list of tokens that ended early. None for another issuer's tokens, unless it says where its list is."""
        url = self.settings.auth_revocations_url
        if self.settings.auth_jwks_url and not url:
            return None
        return Revocations(lambda: fetch_document(self._plain, REVOCATIONS_PATH, url))

    @lazily
    def token_source(self) -> Callable[[float], str | None]:
        """This service's own tokens; gives None without `SERVICE_CLIENT_SECRET`."""
        return TokenSource(self.name, secret(self.settings.service_client_secret), self._ask_auth)

    @lazily
    def client(self) -> Upstreams:
        """Calls to other services, with this service's token."""
        return Upstreams(lambda: self.view, self.metrics, self.token_source, settings=self._client_settings)

    @lazily
    def _grpc(self) -> GrpcClient:
        # Imported by those alone that use it: 15 MB in each process.
        from services.kit.grpc.client import GrpcClient

        return GrpcClient(lambda: self.view, self.metrics, self.token_source, settings=self._client_settings)

    def grpc(self, service: str, stub: Callable[[Any], T], *, repeatable: Collection[str] = ()) -> T:
        """A stub of a service that also speaks gRPC (registered as `<service>-grpc`): `kit().grpc("users", UsersStub)`.

        Its calls go to instances as those of `client` do. A call may run twice if its method begins with Get, BatchGet or List, or
        is in `repeatable`. An answer that is no success raises grpc.RpcError; no answer raises CallError.
        """
        return self._grpc.stub(service, stub, repeatable)

    @lazily
    def view(self) -> discovery.View:
        """The view of Consul, following it from now on: what the service calls, or all. It may not have its first answer yet."""
        api = discovery.ConsulApi(self.settings.consul_http_addr, secret(self.settings.consul_http_token))
        view = discovery.View(api, services=self._calls)
        view.start()
        return view

    @lazily
    def _plain(self) -> Upstreams:
        # Asking auth for keys and tokens needs no token, and must not ask for one.
        return Upstreams(lambda: self.view, self.metrics)

    def follow_auth(self) -> None:
        """Begin what checking tokens needs, and wait for auth's keys for `FIRST_KEYS_S` at most.

        An instance that took requests before would answer the first tokens with 503; one whose auth is away still starts, for
        what needs no token.
        """
        if not self.tokens.prefetch(FIRST_KEYS_S):
            log.warning(
                "serving without auth's keys: requests with tokens are answered 503 until they are fetched"
            )

    def on_start(self, action: Callable[[], object]) -> None:
        """Run `action` in the worker process before it takes its first request; the place to start threads.

        What is started earlier, at import, stays behind in the master when the worker is forked.
        """
        self._on_start.append(action)

    def on_stop(self, action: Callable[[], object]) -> None:
        """Run `action` in the worker process once it has answered its last request; the last one given comes first.

        All of them have what is left of `DRAIN_TIMEOUT_S`.
        """
        self._on_stop.append(action)

    def started(self) -> None:
        """Run what `on_start` collected, and the jobs. Called by the server, in the worker."""
        if self._calls is not None and len(self._calls) > 1:
            # The first request need not wait for the view's first answer.
            _ = self.view
        self.db.warm()
        for action in self._on_start:
            action()
        if self._event_tables is not None:
            self.jobs.every(PURGE_S, self.events.purge)
            self.events.start()
        self.jobs.start()

    def stopped(self) -> None:
        """End the jobs, and run what `on_stop` collected. Called by the server, in the worker."""
        if self._event_tables is not None:
            self.events.stop()
        self.jobs.stop(JOB_END_S)
        for action in reversed(self._on_stop):
            try:
                action()
            except Exception as error:  # the others are to run as well
                log.error("stop action failed", error=repr(error)[:200], exc_info=error)

    def registration(self, port: int) -> Registration:
        """How this instance enters itself in Consul. Raises NoAddress while it is not on the network that it should be on."""
        wanted = self.settings.advertise_address or self.settings.host
        address = own_address(wanted)
        if address is None:
            raise NoAddress(f"no address of this machine is in {wanted}")
        return Registration(
            name=self.name,
            address=address,
            port=port,
            id=self.instance_id,
            route=self.route,
            weight=self.settings.instance_weight,
            backup=self.settings.instance_backup,
            # Its former address may be another's by now, that is healthy as well: see the view.
            check=HttpCheck(path=f"/health/ready?instance={quote(self.instance_id, safe='')}"),
        )

    def grpc_registration(self, port: int) -> Registration:
        """The same of the port where it speaks gRPC. Consul asks there for the instance by name as well."""
        own = self.registration(port)
        id_ = grpc_name(own.id)
        check = GrpcCheck(service=id_)
        return replace(own, name=grpc_name(own.name), id=id_, route=self.grpc_route, check=check)

    def _redis(self, url: str | None, timeout_s: float) -> Redis | None:
        return connect(
            url,
            secret(self.settings.redis_password),
            username=self.settings.redis_username,
            timeout_s=timeout_s,
            connections=self.settings.worker_threads * 2,
        )

    def _ask_auth(self, path: str, body: dict[str, str]) -> tuple[int, Any]:
        response = self._plain.request("POST", "auth", path, json=body, deadline_s=DEADLINE_S)
        return response.status, response.json() if response.status == 200 else None


def kit() -> Kit:
    """The kit of the current Flask application: `db`, `client` … Needs an application context."""
    own: Kit = current_app.extensions["kit"]
    return own
