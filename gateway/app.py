"""One gateway put together: the only place where its parts meet."""

from __future__ import annotations

import sys
from typing import cast

from redis import Redis

import discovery
from gateway.breakers import admin
from gateway.breakers.sync import Sharing
from gateway.cache import AnswerCache
from gateway.cache import admin as cache_views
from gateway.compose import Compositions, Declaration, DeclarationError
from gateway.compose.config import FOLDER, load
from gateway.disconnects import Departures
from gateway.handler import Pipeline
from gateway.limits.loadshed import Places, Shed
from gateway.limits.ratelimit import Limits
from gateway.metrics import BreakerMetrics, CacheMetrics, GatewayMetrics, LimitMetrics, ShedMetrics
from gateway.problems import Problems
from gateway.proxy import Calls, Forward
from gateway.redis_link import TIMEOUT_S, RedisLink
from gateway.request import Reader
from gateway.routes import Exposed, Routes
from gateway.settings import GatewaySettings
from services.kit import ServiceApp, create_service
from services.kit.app import put_in_front
from services.kit.container import Kit
from services.kit.redis_client import connect
from services.kit.settings import secret

# What the edge waits for the gateway: more than any route that it answers for.
EDGE_TIMEOUT_S = 310
# A gateway without a first view of Consul would answer 404 to everything.
VIEW_WAIT_S = 5.0


def create(settings: GatewaySettings | None = None) -> ServiceApp:
    """The application of one instance of the group that GATEWAY_DOMAIN names. Raises ContractError for a setting that is wrong."""
    settings = settings or GatewaySettings.from_environment()
    settings.policy()
    domain = settings.gateway_domain
    own = f"/api/gateway/{domain}"
    try:
        # A mistake in it ends the process here, before anything serves.
        declaration = load(domain, settings.gateway_compose_dir or FOLDER)
    except DeclarationError as error:
        sys.exit(f"cannot start: {error}")
    # Composed paths by name too: a service that asked for one of them later would have the longer prefix.
    held = ["/api", *declaration.fixed_paths] if domain == "business" else declaration.fixed_paths
    app = create_service(
        f"gateway-{domain}",
        paths=[own, *held],
        auth="public",
        domain=domain,
        timeout_s=EDGE_TIMEOUT_S,
        # How long an answer may be silent the gateway knows for each route; this is the most of them.
        idle_s=3600,
        edge_cache=True,
        settings=settings,
    )
    parts = Parts(app, settings, declaration)
    parts.kit.on_start(parts.start)
    admin.install(app, lambda: parts.sharing)
    cache_views.install(app, own, lambda: parts.cache)

    @app.get(own)
    def group() -> dict[str, str]:
        """Health of this group, as seen from outside."""
        return {"status": "draining" if parts.kit.state.draining else "healthy", "gateway": domain}

    return app


class Parts:
    """What a gateway is made of. Nothing here connects or starts a thread before the worker runs `start`."""

    sharing: Sharing | None = None
    cache: AnswerCache | None = None

    def __init__(self, app: ServiceApp, settings: GatewaySettings, declaration: Declaration) -> None:
        self.kit = cast(Kit, app.extensions["kit"])
        self._app = app
        self._settings = settings
        self._declaration = declaration

    def start(self) -> None:
        """In the worker: the parts that hold connections, locks and threads."""
        kit, settings, registry = self.kit, self._settings, self.kit.metrics.registry
        view = Exposed(kit.view, settings.policy())
        routes = Routes(view, settings.gateway_domain)
        kit.view.on_change(lambda *_: routes.follow())
        link = RedisLink(self._redis(connections=8, timeout_s=TIMEOUT_S))
        shed = Shed(settings.shed())
        ShedMetrics(registry, shed)
        calls = Calls(self._client(view, link), shed, routes.domain_of)
        self.cache = self._cache()
        metrics = GatewayMetrics(registry)
        departures = Departures()
        departures.start()
        pipeline = Pipeline(
            reader=Reader(kit, settings, routes),
            limits=self._limits(link),
            open_places=Places(None, settings.gateway_open_per_subject),
            compositions=Compositions(
                self._declaration, calls=calls, view=view, cache=self.cache, metrics=metrics
            ),
            cache=self.cache,
            forward=Forward(calls, departures),
            problems=Problems(kit.name, calls.client.breaker_state),
            metrics=metrics,
            departures=departures,
            own_paths=frozenset(each.rule for each in self._app.url_map.iter_rules() if "<" not in each.rule),
        )
        put_in_front(self._app, pipeline)
        kit.view.ready(VIEW_WAIT_S)

    def _client(self, view: Exposed, link: RedisLink) -> discovery.ServiceClient:
        """The client of all calls, its breakers shared with the group's."""
        settings, metrics = self._settings, BreakerMetrics(self.kit.metrics.registry)
        observer = admin.BreakerObserver(self.kit.metrics, metrics)
        client = discovery.ServiceClient(
            view,
            settings=discovery.ClientSettings(
                attempt_timeout_s=settings.deadline_s, connections=64, breaker=settings.breaker()
            ),
            observer=observer,
        )
        group, instance = settings.gateway_domain, self.kit.instance_id
        self.sharing = Sharing(client, view, group=group, instance=instance, link=link, metrics=metrics)
        observer.on_change = self.sharing.changed
        self.sharing.start()
        return client

    def _cache(self) -> AnswerCache:
        settings = self._settings
        cache = AnswerCache(
            self._redis(connections=64, timeout_s=settings.redis_cache_timeout_s),
            domain=settings.gateway_domain,
            max_bytes=settings.gateway_cache_bytes,
            metrics=CacheMetrics(self.kit.metrics.registry),
        )
        cache.start()
        return cache

    def _limits(self, link: RedisLink) -> Limits:
        metrics = LimitMetrics(self.kit.metrics.registry)
        limits = Limits(self._settings.limits(), link, refused=metrics.refused)
        metrics.watch(lambda: limits.shared.away)
        limits.shared.start()
        return limits

    def _redis(self, connections: int, timeout_s: float) -> Redis | None:
        """The losable Redis: cache, limits, and what the group shares."""
        settings = self._settings
        return connect(
            settings.redis_cache_url,
            secret(settings.redis_password),
            username=settings.redis_username,
            timeout_s=timeout_s,
            connections=connections,
        )
