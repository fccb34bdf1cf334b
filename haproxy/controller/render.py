"""From the edge's state to HAProxy's configuration: a pure function, and the last lock on the door.

Everything in an `EdgeState` has passed `discovery.contract`. It is checked again here, because a value that is pasted
into a configuration is code: `render` raises ContractError rather than write a value outside its grammar.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import jinja2

from discovery import contract
from discovery.errors import ContractError
from discovery.model import Auth, Balance, Domain, Lane, Protocol, Route
from haproxy.controller.model import Backend, EdgeState, Located, Server
from haproxy.controller.pages import Page, pages, write_pages
from haproxy.controller.settings import EdgeSettings
from haproxy.controller.tls import ensure_tls

_TEMPLATES = Path(__file__).resolve().parents[1]
_EVERYWHERE = contract.parse_networks("0.0.0.0/0,::/0")
# What a failed attempt may be tried again after; only idempotent requests are (disable-l7-retry in the template).
_RETRY_LOST = "conn-failure empty-response junk-response response-timeout"
_RETRY_SERVICE = f"{_RETRY_LOST} 500 502 503 504"


def server_params(route: Route, server: Server) -> str:
    """Everything after the address on a `server` line, and after `add server svc/name address` at run time.

    Both must be alike: `add server` ignores `default-server`, and a reload must not change a server.
    """
    parts = [
        f"weight {server.weight}",
        "check inter 1s fastinter 100ms downinter 500ms fall 2 rise 1",
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
    """The whole configuration as text. Raises ContractError for a value that must not be in it; touches no file."""
    for backend in state.backends:
        _check(backend)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  not HTML; every value is checked above
    )
    names = {backend.name for backend in state.backends}
    return environment.get_template("haproxy.cfg.j2").render(
        settings=settings,
        bind=settings.edge_bind_address,
        http_port=settings.edge_http_port,
        https_port=settings.edge_https_port,
        stats_port=settings.stats_port,
        socket=settings.runtime_socket,
        server_state_file=settings.server_state_file,
        certificate=settings.certificate,
        pages=[_page(page, settings) for page in pages()],
        acls=[_acl(backend, names) for backend in state.backends],
        backends=[_backend(backend) for backend in state.backends],
    )


@dataclass(frozen=True)
class _Acl:
    name: str
    service: str
    backend: str
    prefixes: tuple[str, ...]
    gateway: str | None
    always_gateway: bool


def _page(page: Page, settings: EdgeSettings) -> dict[str, object]:
    return {
        "status": page.status,
        "content_type": "application/problem+json",
        "path": settings.errors_dir / page.file_name,
        "retry_after": page.retry_after_s,
    }


def _acl(backend: Backend, names: set[str]) -> _Acl:
    route = backend.route
    gateway = f"svc_gateway-{route.domain}"
    usable = gateway in names and gateway != backend.name and not route.service.startswith("gateway-")
    return _Acl(
        name=f"is_{route.service}",
        service=route.service,
        backend=backend.name,
        prefixes=route.paths,
        gateway=gateway if usable else None,
        always_gateway=route.lane == "gateway",
    )


def _backend(backend: Backend) -> dict[str, object]:
    route = backend.route
    gateway = route.service.startswith("gateway-")
    return {
        "name": backend.name,
        "service": route.service,
        "balance": route.balance,
        "consistent": route.balance in ("source", "uri"),
        "timeout_s": route.timeout_s,
        "retry_on": _RETRY_LOST if gateway else _RETRY_SERVICE,
        "check": route.check,
        "expect": f"hdr name X-Service value {route.service}" if route.check_identity else "status 200-399",
        "lane": "gateway" if gateway else "direct",
        "servers": [
            {"name": s.name, "address": address_of(s), "params": server_params(route, s)}
            for s in backend.servers
        ],
    }


def _check(backend: Backend) -> None:
    route = backend.route
    contract.check_name(route.service)
    for prefix in route.paths:
        contract.check_prefix(prefix)
    contract.check_path(route.check, "edge-check")
    for field, value, allowed in (
        ("edge-balance", route.balance, get_args(Balance)),
        ("edge-auth", route.auth, get_args(Auth)),
        ("edge-lane", route.lane, get_args(Lane)),
        ("edge-domain", route.domain, get_args(Domain)),
        ("edge-protocol", route.protocol, get_args(Protocol)),
        ("edge-strip", route.strip, (True, False)),
        ("edge-check-identity", route.check_identity, (True, False)),
        ("edge-timeout", route.timeout_s, range(1, 3601)),
    ):
        if value not in allowed:
            raise ContractError(field, value, "not of the contract")
    for server in backend.servers:
        contract.check_instance_id(server.name)
        if contract.check_address(server.address, _EVERYWHERE) != server.address:
            raise ContractError("address", server.address, "not in canonical form")
        contract.check_port(server.port)
        if type(server.weight) is not int or not 1 <= server.weight <= 256 or type(server.backup) is not bool:
            raise ContractError("edge-weight", server.weight, "not of the contract")


def prepare_files(state: EdgeState, settings: EdgeSettings) -> None:
    """Write what the configuration of this state refers to (error pages, maps, certificate); call it before `haproxy -c`."""
    ensure_tls(settings)
    write_pages(settings.errors_dir)
