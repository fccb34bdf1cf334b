"""From the edge's state to HAProxy's configuration.

`render` is pure, and the last lock on the door: everything in an `EdgeState` has passed `discovery.contract` before, and
is checked again here, because a value that is pasted into a configuration is code.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2

from discovery.model import Route
from haproxy.controller.checked import check_settings, check_state
from haproxy.controller.model import Backend, EdgeState, Located, Server
from haproxy.controller.pages import pages, write_pages
from haproxy.controller.settings import EdgeSettings
from haproxy.controller.tls import ensure_tls

# Up to here every route is an ACL of its own, at about 0.2 µs a request each; above, one look-up in a map for all.
ACL_ROUTES = 64
# A line of a configuration takes 64 words.
_PATTERNS_PER_LINE = 32
# Servers for which one check a second each costs nothing that matters (about 20 µs a check).
_SERVERS_PER_PACE = 2000
# What an idempotent request is tried again after. A 5xx of a service may be one instance's fault; that of
# a gateway is an answer it has thought about.
_LOST = "conn-failure empty-response junk-response response-timeout"
_FAILED = "500 502 503 504"

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).resolve().parents[1]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701  a configuration is not HTML, and nothing unchecked gets here
)


def pace(state: EdgeState) -> int:
    """How many times slower than usual HAProxy checks its servers, so that thousands of them do not eat a processor."""
    return max(1, math.ceil(sum(len(b.servers) for b in state.backends) / _SERVERS_PER_PACE))


def server_params(route: Route, server: Server, slower: int = 1) -> str:
    """Everything after the address on a `server` line, and after `add server svc/name address` at run time.

    Both must be alike: `add server` ignores `default-server`, and a reload must not change a server. `slower` is
    `pace(state)`.

    Who goes out of rotation is decided by what no client can cause. A refused connection takes a server out at once
    (observe layer4), a failed check does so in two; a hung one's requests are then ended, and the idempotent among them tried
    elsewhere. A 5xx takes nobody out: it is tried elsewhere too, but one URL that fails everywhere would otherwise empty the backend.
    """
    parts = [
        f"weight {server.weight}",
        f"check inter {slower}s fastinter 100ms downinter {500 * slower}ms fall 2 rise 1",
        # The defaults of the file, which a server added at run time does not get: without them it keeps no idle connection.
        "pool-max-conn -1 pool-purge-delay 5s",
        "observe layer4 error-limit 1 on-error mark-down on-marked-down shutdown-sessions",
    ]
    if server.backup:
        parts.append("backup")
    if route.protocol == "h2c":
        parts.append("proto h2")
    return " ".join(parts)


def address_of(server: Located) -> str:
    """`address:port` as HAProxy takes it, in the file and at run time; IPv6 in brackets."""
    return f"[{server.address}]:{server.port}" if ":" in server.address else f"{server.address}:{server.port}"


def render(state: EdgeState, settings: EdgeSettings) -> str:
    """The whole configuration. Raises ContractError for a value that must not be in it; touches no file but the template."""
    check_settings(settings)
    check_state(state)
    routes = _routes(state)
    by_acl = _fit_acls(state)
    return _ENVIRONMENT.get_template("haproxy.cfg.j2").render(
        settings=settings,
        bind=settings.edge_bind_address
        if ":" not in settings.edge_bind_address
        else f"[{settings.edge_bind_address}]",
        cache_mb=settings.edge_cache_mb,
        socket=settings.runtime_socket,
        server_state_file=settings.server_state_file,
        certificate=settings.certificate,
        map_path=_map_path(state, settings),
        keys=state.keys,
        pages=[_page(settings, page.status, page.file_name, page.retry_after_s) for page in pages()],
        acls=routes if by_acl else None,
        public_parts=_parts(state, "public"),
        read_public_parts=_parts(state, "read-public"),
        backends=[_backend(backend, pace(state)) for backend in state.backends],
    )


def prepare_files(state: EdgeState, settings: EdgeSettings) -> None:
    """Write what the configuration of this state refers to: certificate, error pages, route map. Call it before `haproxy -c`.

    A map is named by its content, so that the running configuration keeps its own until it is replaced; those
    that neither the new nor the present configuration names are removed.
    """
    ensure_tls(settings)
    write_pages(settings.errors_dir)
    settings.maps_dir.mkdir(parents=True, exist_ok=True)
    path = _map_path(state, settings)
    if not _fit_acls(state) and not path.exists():
        temporary = path.with_suffix(".new")
        temporary.write_text(_map_text(state))
        temporary.replace(path)
    present = settings.config_path.read_text() if settings.config_path.exists() else ""
    for other in settings.maps_dir.glob("routes-*.map"):
        if other != path and str(other) not in present:
            other.unlink()


@dataclass(frozen=True)
class _Route:
    """Where a service's requests go. `gateway` is the backend of its domain's gateway, None where there is none."""

    service: str
    backend: str
    prefixes: tuple[str, ...]
    auth: str
    gateway: str | None
    always_gateway: bool


def _routes(state: EdgeState) -> list[_Route]:
    names = {backend.name for backend in state.backends}
    return [_route(backend, names) for backend in state.backends]


def _route(backend: Backend, names: set[str]) -> _Route:
    route = backend.route
    gateway = f"svc_gateway-{route.domain}"
    return _Route(
        service=route.service,
        backend=backend.name,
        prefixes=route.paths,
        auth=route.auth,
        gateway=gateway if gateway in names and not _is_gateway(route) else None,
        always_gateway=route.lane == "gateway" and not _is_gateway(route),
    )


def _is_gateway(route: Route) -> bool:
    return route.service.startswith("gateway-")


def _fit_acls(state: EdgeState) -> bool:
    """Whether every route can be an ACL: few enough, and none inside another's prefix, so that their order says nothing."""
    if len(state.backends) > ACL_ROUTES:
        return False
    owner = {prefix: backend.name for backend in state.backends for prefix in backend.route.paths}
    for prefix, name in owner.items():
        while prefix := prefix.rpartition("/")[0]:
            if owner.get(prefix, name) != name:
                return False
    return True


def _map_text(state: EdgeState) -> str:
    lines = []
    for route in _routes(state):
        lane = "gateway" if route.always_gateway else "direct"
        gateway = route.gateway or "nobody"
        lines += [f"{prefix}/ {route.service}:{route.auth}:{lane}:{gateway}\n" for prefix in route.prefixes]
    return "".join(sorted(lines))


def _map_path(state: EdgeState, settings: EdgeSettings) -> Path:
    digest = hashlib.sha256(_map_text(state).encode()).hexdigest()[:16]
    return settings.maps_dir / f"routes-{digest}.map"


def _parts(state: EdgeState, auth: str) -> list[list[str]]:
    services = [b.route.service for b in state.backends if b.route.auth == auth]
    return [services[i : i + _PATTERNS_PER_LINE] for i in range(0, len(services), _PATTERNS_PER_LINE)]


def _page(
    settings: EdgeSettings, status: int, file_name: str, retry_after_s: int | None
) -> dict[str, object]:
    headers = f" hdr Retry-After {retry_after_s}" if retry_after_s else ""
    if status == 401:
        headers += " hdr WWW-Authenticate 'Bearer realm=\"breakwater\"'"
    return {"status": status, "path": settings.errors_dir / file_name, "headers": headers}


def _backend(backend: Backend, slower: int) -> dict[str, object]:
    route = backend.route
    prefixes = "|".join(re.escape(prefix) for prefix in route.paths)
    return {
        "name": backend.name,
        "service": route.service,
        "balance": route.balance,
        "consistent": route.balance in ("source", "uri"),
        "timeout_s": route.timeout_s,
        "retry_on": _LOST if _is_gateway(route) else f"{_LOST} {_FAILED}",
        "check": route.check,
        "identity": route.check_identity,
        "strip_regex": f"'^(?:{prefixes})/?(.*)$'" if route.strip else None,
        "lane": "gateway" if _is_gateway(route) else "direct",
        "servers": [
            {"name": s.name, "address": address_of(s), "params": server_params(route, s, slower)}
            for s in backend.servers
        ],
    }
