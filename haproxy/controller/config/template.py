"""From the edge's state to HAProxy's configuration.

`render` is pure, and the last lock on the door: everything in an `EdgeState` has passed `discovery.contract` before, and
is checked again here, because a value that is pasted into a configuration is code.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import jinja2

from discovery.model import Route
from haproxy.controller.config.allow_list import check_settings, check_state
from haproxy.controller.config.error_pages import LATE, OPENAI_PREFIXES, late_page, pages, write_pages
from haproxy.controller.config.files import write_if_changed
from haproxy.controller.config.model import Backend, EdgeState, Server
from haproxy.controller.config.tls import ensure_tls
from haproxy.controller.settings import EdgeSettings
from haproxy.controller.wanted.ownership import NEVER_ROUTED

Params = Callable[[Route, Server], str]
# Up to here every service is a named ACL, tried in order at about 0.1 µs each; above, the map alone says where to.
ACL_ROUTES = 32
# On every answer that HAProxy makes itself.
_OWN_HEADERS = (
    "hdr Cache-Control no-store hdr X-Content-Type-Options nosniff"
    " hdr X-Frame-Options DENY hdr Referrer-Policy no-referrer"
)
# The ring buffer of HAProxy in which it notes which servers go down.
DOWNS = "downs"
REQUESTS = "requests"
# The edge's own paths that a gateway answers, and which gateway: the first one that lives.
BREAKERS = "/edge/breakers"
_ANSWERERS = ("svc_gateway-business", "svc_gateway-identity", "svc_gateway-ai")
# Streams of minutes outlive the reload that a change of another route brings; a fleet whose routes change without end must not
# gather old workers without end.
HARD_STOP_S = 600
MAX_RELOADS = 50
# How long a client may be silent where no body is a stream.
_CLIENT_S = 60
# Servers for which one check a second each costs nothing that matters (about 20 µs a check).
_SERVERS_PER_PACE = 2000
# What an idempotent request is tried again after. A 5xx of a service may be one instance's fault; that of
# a gateway is deliberate. Not after what says that there is too much to do, or that time is over (503, 504,
# a timeout): a second try would double the load, and come too late. Requests on an instance that hangs end with its checks.
_LOST = "conn-failure empty-response junk-response"
_FAILED = "500 502"

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).resolve().parents[2]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701  a configuration is not HTML, and nothing unchecked gets here
)


def pace(state: EdgeState) -> int:
    """How many times slower than usual HAProxy checks its servers, so that thousands of them do not eat a processor."""
    return max(1, math.ceil(sum(len(b.servers) for b in state.backends) / _SERVERS_PER_PACE))


def params_for(state: EdgeState, settings: EdgeSettings) -> Params:
    """`server_params` for the servers of this state, in the file and at run time."""
    return partial(server_params, slower=pace(state), maxconn=settings.edge_server_maxconn)


def server_params(route: Route, server: Server, slower: int = 1, maxconn: int = 0) -> str:
    """Everything after the address on a `server` line, and after `add server svc/name address` at run time.

    Both must be alike: `add server` ignores `default-server`, and a reload must not change a server. `slower` is
    `pace(state)`.

    Which server goes out of rotation is decided by what no client can cause. A refused connection calls for two real checks, 10 and
    20 ms later, which settle it (a lost SYN takes no server out). It does not count as one itself: the second request that is
    refused would take the instance out. A hung instance fails two checks; what is left of its requests the Reaper then ends,
    and the idempotent among them are tried elsewhere. A 5xx is tried elsewhere too, but takes no server out: with
    `observe layer7` one URL that always fails, at 200/s, took all three instances down, and a third of all other requests
    with them.
    """
    parts = [
        f"weight {server.weight}",
        f"check inter {slower}s fastinter 10ms downinter {500 * slower}ms fall 2 rise 1",
        # The defaults of the file, which a server added at run time does not get: without them it keeps no idle connection.
        "pool-max-conn -1 pool-purge-delay 5s",
        "observe layer4 error-limit 1 on-error fastinter",
    ]
    if maxconn:
        parts.append(f"maxconn {maxconn}")
    if server.backup:
        parts.append("backup")
    if route.protocol == "h2c":
        parts.append("proto h2")
    return " ".join(parts)


def address_of(server: Server) -> str:
    """`address:port` as HAProxy takes it, in the file and at run time; IPv6 in brackets."""
    return f"{_bracketed(server.address)}:{server.port}"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _quoted(text: str) -> str:
    """As it stands between double quotes of a configuration."""
    return text.replace("\\", "\\\\").replace('"', '\\"')


# `/package.Service/Method`, as gRPC names what is called.
_GRPC_METHOD = re.compile(r"/[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)+/[A-Za-z0-9_]+")


def _streams(route: Route) -> bool:
    return route.stream or route.protocol == "h2c"


def _client_s(state: EdgeState) -> int:
    """How long a client may be silent: HAProxy has one time for all routes, so that of the most patient stream, up to an hour."""
    most = max((b.route.idle_s for b in state.backends if _streams(b.route)), default=0)
    return min(max(_CLIENT_S, most), 3600)


def render(state: EdgeState, settings: EdgeSettings) -> str:
    """The whole configuration. Raises ContractError for a value that must not be in it; touches no file but the template."""
    check_settings(settings)
    check_state(state)
    trusted = " ".join(map(str, settings.trusted_proxies()))
    return _ENVIRONMENT.get_template("haproxy.cfg.j2").render(
        settings=settings,
        bind=_bracketed(settings.edge_bind_address),
        stats_bind=_bracketed(settings.stats_bind_address),
        cache_mb=settings.edge_cache_mb,
        socket=settings.runtime_socket,
        downs=DOWNS,
        requests=REQUESTS,
        log_socket=settings.log_socket,
        late=settings.errors_dir / LATE,
        late_page=_quoted(late_page()),
        client_s=_client_s(state),
        hard_stop_s=max([HARD_STOP_S, *(max(b.route.timeout_s, b.route.idle_s) for b in state.backends)]),
        max_reloads=MAX_RELOADS,
        trusted=trusted,
        by_header=bool(trusted) and not settings.edge_proxy_protocol,
        server_state_file=settings.server_state_file,
        certificate=settings.certificate,
        revoked=settings.revoked_file,
        map_path=_map_path(state, settings),
        keys=state.keys,
        pages=[_page(settings, page.status, page.file_name, page.retry_after_s) for page in pages()],
        health_headers=_OWN_HEADERS,
        openai_prefixes=OPENAI_PREFIXES,
        acls=_in_order(_routes(state)),
        breakers=BREAKERS,
        answerers=_answerers(state),
        backends=[_backend(backend, params_for(state, settings)) for backend in state.backends],
    )


def prepare_files(state: EdgeState, settings: EdgeSettings) -> None:
    """Write what the configuration of this state refers to: certificate, error pages, route map. Call it before `haproxy -c`.

    A map is named by its content, so that the running configuration keeps its own until it is replaced; those
    that neither the new nor the present configuration names are removed.
    """
    ensure_tls(settings)
    write_pages(settings.errors_dir)
    settings.revoked_file.touch()
    path = _map_path(state, settings)
    write_if_changed(path, _map_text(state).encode())
    present = settings.config_path.read_text() if settings.config_path.exists() else ""
    for other in settings.maps_dir.glob("routes-*.map"):
        if other != path and str(other) not in present:
            other.unlink()


@dataclass(frozen=True)
class _Route:
    """Where a service's requests go: to `target`, or to `gateway` (a backend; `nobody` where there is none) while `target` is dead."""

    service: str
    prefixes: tuple[str, ...]
    auth: str
    backend: str
    gateway: str
    always_gateway: bool
    cache: bool
    stream: bool
    upgrade: bool

    @property
    def target(self) -> str:
        return self.gateway if self.always_gateway else self.backend

    def map_lines(self) -> list[str]:
        public, readable = self.auth == "public", self.auth in ("public", "read-public")
        flags = f"{public:d}:{readable:d}:{self.cache:d}:{self.stream:d}:{self.upgrade:d}"
        entry = f"{self.service}:{self.target}:{self.gateway}:{flags}"
        return [f"{prefix}/ {entry}\n" for prefix in self.prefixes]


def _routes(state: EdgeState) -> list[_Route]:
    """Every route that a request can take; prefixes that are never routed from outside are left out."""
    names = {backend.name for backend in state.backends}
    routes = (_route(backend, names) for backend in state.backends)
    return [route for route in routes if route.prefixes]


def _route(backend: Backend, names: set[str]) -> _Route:
    route = backend.route
    gateway = f"svc_gateway-{route.domain}"
    return _Route(
        service=route.service,
        prefixes=tuple(p for p in route.paths if not f"{p}/".startswith(NEVER_ROUTED)),
        auth=route.auth,
        backend=backend.name,
        gateway=gateway if gateway in names and not _is_gateway(route) else "nobody",
        always_gateway=route.lane == "gateway" and not _is_gateway(route),
        cache=route.cache,
        stream=_streams(route),
        upgrade=route.upgrade == "websocket",
    )


def _is_gateway(route: Route) -> bool:
    return route.service.startswith("gateway-")


def _in_order(routes: list[_Route]) -> list[_Route] | None:
    """The routes in an order in which the first ACL that fits is the one of the longest prefix: a service inside another's
    prefix comes before it. None when there are too many, or when two lie inside each other's, so that no order would do."""
    if len(routes) > ACL_ROUTES:
        return None
    owners = {prefix: route.service for route in routes for prefix in route.prefixes}
    inside: dict[str, set[str]] = {route.service: set() for route in routes}
    for prefix, service in owners.items():
        above = prefix
        while above := above.rpartition("/")[0]:
            if owners.get(above, service) != service:
                inside[owners[above]].add(service)
    by_name = {route.service: route for route in routes}
    try:
        return [by_name[service] for service in TopologicalSorter(inside).static_order()]
    except CycleError:
        return None


def _answerers(state: EdgeState) -> list[str]:
    """The backends of the gateways that there are, in the order in which they are asked for what is the edge's own."""
    names = {backend.name for backend in state.backends}
    return [name for name in _ANSWERERS if name in names]


def _map_text(state: EdgeState) -> str:
    lines = [line for route in _routes(state) for line in route.map_lines()]
    first, second, third = (*_answerers(state), "nobody", "nobody", "nobody")[:3]
    own = [
        f"{BREAKERS}/ edge:{first}:{second}:0:0:0:0:0:{third}\n",
        "/health/ edge:edge_itself:nobody:1:1:0:0:0\n",
    ]
    return "".join(sorted([*lines, *own]))


def _map_path(state: EdgeState, settings: EdgeSettings) -> Path:
    digest = hashlib.sha256(_map_text(state).encode()).hexdigest()[:16]
    return settings.maps_dir / f"routes-{digest}.map"


def _page(
    settings: EdgeSettings, status: int, file_name: str, retry_after_s: int | None
) -> dict[str, object]:
    headers = _OWN_HEADERS
    if retry_after_s:
        headers += f" hdr Retry-After {retry_after_s}"
    if status == 405:
        headers += " hdr Allow 'GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS'"
    if status == 401:
        headers += " hdr WWW-Authenticate 'Bearer realm=\"breakwater\"'"
    return {"status": status, "path": settings.errors_dir / file_name, "headers": headers}


def _backend(backend: Backend, params: Params) -> dict[str, object]:
    route = backend.route
    # The longest last: the last that fits is the one that is said, as in the map. In the expression, the first.
    stripped = sorted(route.paths, key=len) if route.strip else []
    prefixes = "|".join(re.escape(prefix) for prefix in reversed(stripped))
    return {
        "name": backend.name,
        "service": route.service,
        "balance": route.balance,
        "consistent": route.balance in ("source", "uri"),
        "timeout_s": route.timeout_s,
        "idle_s": route.idle_s,
        "server_s": max(route.timeout_s, route.idle_s) if _streams(route) else route.timeout_s,
        "patient": route.idle_s > route.timeout_s and not _streams(route),
        "upgrade": route.upgrade == "websocket",
        "retry_on": _LOST if _is_gateway(route) else f"{_LOST} {_FAILED}",
        "check": route.check,
        "check_grpc": route.protocol == "h2c" and _GRPC_METHOD.fullmatch(route.check) is not None,
        "identity": route.check_identity,
        "stripped": stripped,
        "strip_regex": f"'^(?:{prefixes})(?:/(.*))?$'" if stripped else None,
        "lane": "gateway" if _is_gateway(route) else "direct",
        "servers": [
            {"name": s.name, "address": address_of(s), "params": params(route, s)} for s in backend.servers
        ],
    }
