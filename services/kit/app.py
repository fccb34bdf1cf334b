"""`create_service`: from a name and a path to a Flask application with everything that a service here needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, cast

from flask import Response, jsonify, request
from sqlalchemy import MetaData

from discovery import ClientSettings, contract
from discovery.model import Auth, Balance, Domain, Lane, Route
from services.kit.auth.require import need_of
from services.kit.container import Kit
from services.kit.settings import ServiceSettings, WorkerClass
from services.kit.stale import decorator
from services.kit.telemetry import logs, metrics
from services.kit.web import cors, problems
from services.kit.web.api import ServiceApp
from services.kit.web.context import current
from services.kit.web.middleware import REFUSED, Forwarded, Front, Observer


class RouteOptions(TypedDict, total=False):
    """What a service asks of the edge beside its paths. Ref: docs/your-own-service.md, "What a route may ask for"."""

    auth: Auth
    balance: Balance
    domain: Domain
    lane: Lane
    timeout_s: int
    idle_s: int
    stream: bool
    check: str


def create_service(
    name: str,
    *,
    paths: Sequence[str] = (),
    edge_cache: bool = False,
    settings: ServiceSettings | None = None,
    models_metadata: MetaData | None = None,
    migrations: Path | None = None,
    calls: Iterable[str] | None = None,
    client: ClientSettings | None = None,
    worker: WorkerClass | None = None,
    events: bool = False,
    **route: Unpack[RouteOptions],
) -> ServiceApp:
    """A service's application. `app.extensions["kit"]` is its Kit.

    `paths` and `route` are its route at the edge; without paths it is found by other services only. With `edge_cache` the
    edge may keep answers that call themselves shared; `stream` passes bodies of requests on as they come.
    `models_metadata` are its tables: `migrations` (by default the folder `migrations` beside the calling file, if there is
    one) brings them about at start; without migrations they are made as they are. `calls` names the services that it calls:
    an instance then follows no others (by default all). `client` sets how it calls, `worker` what it serves with where
    `WORKER_CLASS` does not say. With `events` it publishes and consumes events, and has their tables in its database
    (`create_event_tables` in a migration).
    Raises discovery.ContractError for a value that the edge would refuse; a wrong environment ends the process.
    """
    settings = settings or ServiceSettings.from_environment()
    if worker is not None and "worker_class" not in settings.model_fields_set:
        settings = settings.model_copy(update={"worker_class": worker})
    contract.check_own_name(name)
    asked = contract.route_meta(Route(name, tuple(paths), cache=edge_cache, **route))
    module = sys._getframe(1).f_globals
    if models_metadata is not None and migrations is None:
        migrations = _beside(module.get("__file__"))
    checked = contract.parse_route(name, asked) if paths else None
    kit = Kit(name, settings, checked, models_metadata, migrations, calls=calls, client=client, events=events)
    app = ServiceApp(str(module.get("__name__", name)), title=name)
    _install(app, kit)
    return app


def _install(app: ServiceApp, kit: Kit) -> None:
    settings = kit.settings
    logs.configure(kit.name, settings.log_level, settings.log_format)
    app.config.update(MAX_BODY_BYTES=settings.max_body_bytes)
    app.extensions["kit"] = kit
    problems.install(app, kit.name)
    _install_own_routes(app, kit)
    app.before_request(_before)
    cors.install(app, settings)
    decorator.install(app, routed=kit.route is not None)
    # A gateway's own way of answering stands before this: it passes the headers on as they came.
    inside = Forwarded(app.wsgi_app, settings.trusted_proxies)
    app.wsgi_app = Observer(inside, app, kit)  # type: ignore[method-assign]


def _beside(file: str | None) -> Path | None:
    folder = Path(file).resolve().parent / "migrations" if file else None
    return folder if folder is not None and folder.is_dir() else None


# What the outermost layer found, by status.
_REFUSALS = {
    400: "The body is incomplete or malformed.",
    408: "The body did not come in time.",
    413: "The body is larger than this service takes.",
    503: "Too many request bodies are under way. Try again.",
    504: "The time for this request is over.",
}


def _before() -> None:
    rule = request.url_rule
    if rule is not None:
        current().route = rule.rule
    refused = request.environ.get(REFUSED)
    if refused is not None:
        headers = {"Retry-After": "1"} if refused == 503 else {}
        raise problems.Problem(refused, detail=_REFUSALS[refused], headers=headers)


def _install_own_routes(app: ServiceApp, kit: Kit) -> None:
    headers = {"X-Service": kit.name, "Cache-Control": "no-store"}

    def live() -> Any:
        return {"status": "live"}, headers

    def ready() -> Any:
        if kit.state.draining:
            return jsonify(status="draining"), 503, headers
        if request.args.get("instance", kit.instance_id) != kit.instance_id:
            return jsonify(status="another instance", instance=kit.instance_id), 503, headers
        return {"status": "ready"}, headers

    def exposition() -> Response:
        return Response(kit.metrics.render(), content_type=metrics.CONTENT_TYPE)

    def document() -> Response:
        return Response(app.document(), mimetype="application/json")

    views: dict[str, Callable[[], Any]] = {
        "/health/live": live,
        "/health/ready": ready,
        "/metrics": exposition,
        "/openapi.json": document,
    }
    for path, view in views.items():
        app.add_url_rule(path, endpoint=f"kit:{path}", view_func=view)


def put_in_front(app: ServiceApp, front: Front) -> None:
    """Have `front` asked before Flask, for every request from now on."""
    cast(Observer, app.wsgi_app).front = front


def needs_tokens(app: ServiceApp) -> bool:
    """Whether any view of the application checks tokens, as every call by gRPC does."""
    kit: Kit = app.extensions["kit"]
    return kit.grpc_service is not None or any(need_of(view) for view in app.view_functions.values())
