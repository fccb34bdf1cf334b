"""The allow-list in front of the template: every value again, wherever it comes from."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from discovery import contract
from discovery.errors import ContractError
from discovery.model import Route
from haproxy.controller.config.model import EdgeState, Server, VerifyKey
from haproxy.controller.settings import EdgeSettings

_EVERYWHERE = contract.parse_networks("0.0.0.0/0,::/0")
_KID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CLAIM = re.compile(r"[A-Za-z0-9_.:/~-]{1,200}")
# Paths stand in single quotes, one of them inside double quotes: nothing that ends either, expands or begins a format.
_FILE = re.compile(r"/[^\x00-\x1f\x7f'\"\\$%#`]{1,400}")


def check_settings(settings: EdgeSettings) -> None:
    """Raises ContractError for a setting that cannot stand in a configuration."""
    settings.trusted_proxies()
    for name, path in (("EDGE_DIR", settings.edge_dir), ("EDGE_RUN_DIR", settings.edge_run_dir)):
        _file(name, path.absolute())
    for name, claim in (("AUTH_ISSUER", settings.auth_issuer), ("AUTH_AUDIENCE", settings.auth_audience)):
        if not _CLAIM.fullmatch(claim):
            raise ContractError(name, claim, "must be 1-200 of letters, digits and _ . : / ~ -")
    for name, address in (
        ("EDGE_BIND_ADDRESS", settings.edge_bind_address),
        ("STATS_BIND_ADDRESS", settings.stats_bind_address),
        ("CONTROLLER_BIND_ADDRESS", settings.controller_bind_address),
    ):
        if address != "*":
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise ContractError(name, address, "must be * or an IP address") from None


def check_state(state: EdgeState) -> None:
    """Raises ContractError for the first value of the state that is not of the contract, and for a name that stands twice."""
    for backend in state.backends:
        _check_route(backend.route)
        for server in backend.servers:
            _check_server(server)
        _once("instance id", [server.name for server in backend.servers])
    for key in state.keys:
        _check_key(key)
    _once("service", [backend.route.service for backend in state.backends])
    _once("edge-path", [prefix for backend in state.backends for prefix in backend.route.paths])
    _once("kid", [key.kid for key in state.keys])


def _check_route(route: Route) -> None:
    """What the contract reads out of the route's own metadata must be this route again."""
    for prefix in route.paths:
        contract.check_prefix(prefix)
    one = replace(route, paths=("/one",))
    if contract.parse_route(route.service, contract.route_meta(one)) != one:
        raise ContractError("route", route.service, "holds a value that is not of the contract")


def _check_server(server: Server) -> None:
    contract.check_instance_name(server.name)
    if contract.check_address(server.address, _EVERYWHERE) != server.address:
        raise ContractError("address", server.address, "not in canonical form")
    contract.check_port(server.port)
    _integer("edge-weight", server.weight, 1, 256)
    if type(server.backup) is not bool:
        raise ContractError("edge-backup", server.backup, "must be true or false")


def _check_key(key: VerifyKey) -> None:
    if not _KID.fullmatch(key.kid):
        raise ContractError("kid", key.kid, "must be 1-64 of letters, digits, _ and -")
    _file("pem_path", Path(key.pem_path))


def _file(field: str, path: Path) -> None:
    if not _FILE.fullmatch(str(path)) or ".." in path.parts:
        raise ContractError(
            field, path, "must be an absolute path without quotes, \\, $, %, # or control characters"
        )


def _integer(field: str, value: object, low: int, high: int) -> None:
    # type(), not isinstance: True is an int, and a str subclass can compare as it likes.
    if type(value) is not int or not low <= value <= high:
        raise ContractError(field, value, f"must be an integer from {low} to {high}")


def _once(field: str, values: list[str]) -> None:
    value, count = next(iter(Counter(values).most_common(1)), ("", 0))
    if count > 1:
        raise ContractError(field, value, "stands twice")
