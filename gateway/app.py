"""One gateway put together: the only place where its parts meet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

from redis import Redis

import discovery
from discovery.contract import Policy
from discovery.model import Domain
from gateway.breakers import admin
from gateway.breakers.sync import Sharing
from gateway.cache import AnswerCache
from gateway.cache import admin as cache_views
from gateway.calls import Calls
from gateway.compose import Compositions, Declaration, DeclarationError
from gateway.compose.config import FOLDER, load
from gateway.disconnects import Departures
from gateway.fallbacks import Fallbacks
from gateway.handler import Pipeline
from gateway.limits.loadshed import Shed
from gateway.limits.places import Places
from gateway.limits.ratelimit import Limits
from gateway.metrics import BreakerMetrics, CacheMetrics, GatewayMetrics, LimitMetrics, ShedMetrics
from gateway.problems import Problems
from gateway.proxy import Forward
from gateway.redis_link import TIMEOUT_S as LINE_TIMEOUT_S
from gateway.redis_link import Line
from gateway.request import Reader
from gateway.routes import Exposed, Routes
from gateway.settings import GatewaySettings
from services.kit import ServiceApp, create_service
from services.kit.app import put_in_front
from services.kit.container import Kit
from services.kit.redis_client import connect
from services.kit.settings import secret

# Everything under them is Flask's, whatever services hold.
OWN_PREFIXES = ("/edge/",)


def create(settings: GatewaySettings | None = None) -> ServiceApp:
    """The application of one instance of the group that GATEWAY_DOMAIN names. Raises ContractError for a setting that is wrong."""
    settings = settings or GatewaySettings.from_environment()
    policy = settings.policy()
    domain = settings.gateway_domain
    own = f"/api/gateway/{domain}"
    # A mistake in it ends the process here, before anything serves.
    declaration = _declaration(domain, settings.gateway_compose_dir)
    # Composed paths by name, too: a service that asked for one of them later would have the longer prefix.
    held = ["/api", *declaration.fixed_paths] if domain == "business" else declaration.fixed_paths
    app = create_service(
        f"gateway-{domain}",
        paths=[own, *held],
        auth="public",
        domain=domain,
        timeout_s=settings.edge_timeout_s,
        # How long an answer may be silent the gateway knows for each route; this is the most of them.
        idle_s=3600,
        edge_cache=True,
        settings=settings,
    )
    kit = cast(Kit, app.extensions["kit"])
    Parts(app, kit, settings, own, declaration, policy)
    return app


class Parts:
    """What a gateway is made of. Nothing here connects or starts a thread before the worker runs (`kit.on_start`)."""

    def __init__(
        self,
        app: ServiceApp,
        kit: Kit,
        settings: GatewaySettings,
        own: str,
        declaration: Declaration,
        policy: Policy,
    ) -> None:
        self.kit = kit
        self.settings = settings
        self._declaration = declaration
        self._policy = policy
        kit.on_start(self._start)
        self._app = app
        self._sharing: Sharing | None = None
        admin.install(app, lambda: self._sharing)
        self._cache: AnswerCache | None = None
        cache_views.install(app, own, lambda: self._cache)

        @app.get(own)
        def group() -> dict[str, str]:
            """Health of this group, for whoever asks from outside."""
            return {
                "status": "draining" if kit.state.draining else "healthy",
                "gateway": settings.gateway_domain,
            }

    def _start(self) -> None:
        """In the worker: the parts that hold connections, locks and threads."""
        kit, settings = self.kit, self.settings
        view = Exposed(kit.view, self._policy)
        routes = Routes(view, settings.gateway_domain)
        kit.view.on_change(lambda *_: routes.follow())
        client = self._client(view)
        shed = Shed(settings.shed())
        ShedMetrics(kit.metrics.registry, shed)
        calls = Calls(client, shed, routes.domain_of)
        problems = Problems(kit.name, calls.breaker)
        cache = AnswerCache(
            self._redis(),
            domain=settings.gateway_domain,
            max_bytes=settings.gateway_cache_bytes,
            stale_if_error_s=settings.gateway_cache_stale_if_error_s,
            metrics=CacheMetrics(kit.metrics.registry),
        )
        cache.start()
        self._cache = cache
        departures = Departures()
        departures.start()
        metrics = GatewayMetrics(kit.metrics.registry)
        limits = Limits(settings.limits(), self._redis(connections=2))
        limits.refused = LimitMetrics(kit.metrics.registry, lambda: limits.counts.away).refused
        limits.start()
        pipeline = Pipeline(
            reader=Reader(kit, settings, routes),
            forward=Forward(calls, departures),
            fallbacks=Fallbacks(problems, cache.last_good),
            problems=problems,
            metrics=metrics,
            departures=departures,
            own=self._own(),
            open_places=Places(None, settings.gateway_open_per_subject),
            limits=limits,
            compositions=Compositions(
                self._declaration, calls=calls, view=view, cache=cache, metrics=metrics
            ),
            cache=cache,
        )
        put_in_front(self._app, pipeline)
        kit.view.ready(settings.view_wait_s)

    def _client(self, view: Exposed) -> discovery.ServiceClient:
        """The client of all calls, its breakers shared with the group's."""
        settings, metrics = self.settings, BreakerMetrics(self.kit.metrics.registry)
        observer = admin.BreakerObserver(self.kit.metrics, metrics)
        client = discovery.ServiceClient(
            view,
            settings=discovery.ClientSettings(
                attempt_timeout_s=settings.deadline_s, connections=64, breaker=settings.breaker()
            ),
            observer=observer,
        )
        self._sharing = self._share(client, view, observer, metrics)
        return client

    def _share(
        self,
        client: discovery.ServiceClient,
        view: Exposed,
        observer: admin.BreakerObserver,
        metrics: BreakerMetrics,
    ) -> Sharing:
        """The breakers' own way to the losable Redis: its subscription keeps a connection, and nobody waits for its answers."""
        sharing = Sharing(
            client,
            view,
            group=self.settings.gateway_domain,
            instance=self.kit.instance_id,
            line=Line(self._redis(connections=8, timeout_s=LINE_TIMEOUT_S)),
            metrics=metrics,
        )
        observer.tell = sharing.changed
        sharing.start()
        return sharing

    def _redis(self, connections: int | None = None, timeout_s: float | None = None) -> Redis | None:
        """The losable Redis: cache, limits, and what the group shares."""
        settings = self.settings
        return connect(
            settings.redis_cache_url,
            secret(settings.redis_password),
            username=settings.redis_username,
            timeout_s=timeout_s or settings.redis_cache_timeout_s,
            connections=connections or settings.redis_connections,
        )

    def _own(self) -> Owned:
        rules = [rule.rule for rule in self._app.url_map.iter_rules()]
        return Owned(frozenset(rule for rule in rules if "<" not in rule))


def _declaration(domain: Domain, folder: Path | None) -> Declaration:
    try:
        return load(domain, folder or FOLDER)
    except DeclarationError as error:
        sys.exit(f"cannot start: {error}")


class Owned:
    """Which paths are answered by Flask: those that have a rule of their own, and those under `OWN_PREFIXES`."""

    def __init__(self, exact: frozenset[str]) -> None:
        self._exact = exact

    def __call__(self, path: str) -> bool:
        return path in self._exact or path.startswith(OWN_PREFIXES)
