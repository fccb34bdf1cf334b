"""Nothing unchecked gets into a configuration, wherever it comes from; and HAProxy takes what is rendered."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from discovery.errors import ContractError
from discovery.model import Route
from haproxy.controller.config.model import Backend, EdgeState, Server, VerifyKey
from haproxy.controller.config.template import address_of, prepare_files, render, server_params
from haproxy.controller.settings import EdgeSettings
from tests.support.edge import valid

ROUTE = Route("users", ("/api/users",))
SERVER = Server("users-1", "127.0.0.1", 20001)
KEY = VerifyKey("key-1", "/var/keys/key-1.pem")
EVIL = [
    "x\nprogram p\n    command touch /tmp/owned",
    "x\r\nx",
    "x;disable server a/b",
    "x y",
    "%[env(HOME)]",
    "${HOME}",
    "x'y",
    'x"y',
    "x\\y",
    "x#y",
    "x\x00y",
    "é",
    "",
]
ADDRESSES = [
    "unix@/tmp/x.sock",
    "abns@x",
    "fd@3",
    "localhost",
    "127.0.0.1:80",
    "127.1",
    "0x7f000001",
    "::ffff:127.0.0.1",
    "fe80::1%lo",
]


def state(**changes: Any) -> EdgeState:
    given = {"route": ROUTE, "server": SERVER, "key": KEY} | changes
    return EdgeState((Backend(given["route"], (given["server"],)),), (given["key"],))


def settings(tmp_path: Path, **values: Any) -> EdgeSettings:
    return EdgeSettings(**({"edge_dir": tmp_path / "edge", "edge_run_dir": tmp_path} | values))


def refused(changed: EdgeState, made: EdgeSettings) -> None:
    with pytest.raises(ContractError):
        render(changed, made)


@pytest.mark.parametrize("field", [field.name for field in fields(Route) if field.name != "warning"])
def test_bad_route_is_refused(tmp_path: Path, field: str) -> None:
    for evil in EVIL:
        value: Any = ("/" + evil,) if field == "paths" else "/" + evil if field == "check" else evil
        refused(state(route=replace(ROUTE, **{field: value})), settings(tmp_path))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("name", EVIL),
        ("address", EVIL + ADDRESSES),
        ("port", [*EVIL, 0, 65536, True]),
        ("weight", [*EVIL, 0, 257, True]),
        ("backup", EVIL),
    ],
)
def test_bad_server_is_refused(tmp_path: Path, field: str, values: list[object]) -> None:
    for value in values:
        refused(state(server=replace(SERVER, **{field: value})), settings(tmp_path))  # type: ignore[arg-type]


def test_bad_key_is_refused(tmp_path: Path) -> None:
    for evil in EVIL:
        refused(state(key=replace(KEY, kid=evil)), settings(tmp_path))
        if evil not in ("é", "x y", "x;disable server a/b"):
            path = f"/var/keys/{evil}" if evil else ""
            refused(state(key=replace(KEY, pem_path=path)), settings(tmp_path))
    for path in ("keys/k.pem", "/var/keys/../../etc/k.pem", "/var/%[env(X)]", "/var/k'y"):
        refused(state(key=replace(KEY, pem_path=path)), settings(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["edge_bind_address", "stats_bind_address", "controller_bind_address", "auth_issuer", "auth_audience"],
)
def test_bad_setting_is_refused(tmp_path: Path, name: str) -> None:
    for evil in EVIL:
        refused(state(), settings(tmp_path, **{name: evil}))


def test_folder_that_ends_a_quote_is_refused(tmp_path: Path) -> None:
    refused(state(), settings(tmp_path, edge_dir=tmp_path / "it's"))


@pytest.mark.parametrize(
    "twice",
    [
        EdgeState((Backend(ROUTE), Backend(ROUTE))),
        EdgeState((Backend(ROUTE), Backend(Route("posts", ("/api/users",))))),
        EdgeState((Backend(ROUTE, (SERVER, SERVER)),)),
        EdgeState(keys=(KEY, KEY)),
    ],
)
def test_what_stands_twice_is_refused(tmp_path: Path, twice: EdgeState) -> None:
    with pytest.raises(ContractError, match="twice"):
        render(twice, settings(tmp_path))


def test_server_parameters_stand_in_the_file_as_they_are_given_at_run_time(tmp_path: Path) -> None:
    for protocol, backup in (("http", False), ("h2c", True)):
        route, server = replace(ROUTE, protocol=protocol), replace(SERVER, backup=backup, weight=7)
        text = render(state(route=route, server=server), settings(tmp_path))
        assert f"    server users-1 127.0.0.1:20001 {server_params(route, server)}\n" in text
        assert ("backup" in server_params(route, server)) is backup
        assert ("proto h2" in server_params(route, server)) is (protocol == "h2c")
    assert address_of(replace(SERVER, address="::1")) == "[::1]:20001"


def test_how_long_a_head_may_be_is_the_operators_to_say(tmp_path: Path) -> None:
    made = settings(tmp_path, edge_bufsize=40_960)
    write_configuration(EdgeState(state().backends), made)
    assert "    tune.bufsize 40960\n" in made.config_path.read_text()
    assert valid(made.config_path) == ""


def test_connections_are_bounded_where_the_operator_says_so(tmp_path: Path) -> None:
    made = settings(tmp_path, edge_maxconn=5000, edge_server_maxconn=40)
    write_configuration(EdgeState(state().backends), made)
    text = made.config_path.read_text()
    assert "    maxconn 5000\n" in text
    assert text.count(" maxconn 40") == 1
    assert valid(made.config_path) == ""
    assert "maxconn" not in render(state(), settings(tmp_path))


def test_old_worker_outlives_the_longest_timeout_of_a_route(tmp_path: Path) -> None:
    assert "hard-stop-after 600s" in render(state(), settings(tmp_path))
    assert "hard-stop-after 3600s" in render(state(route=replace(ROUTE, timeout_s=3600)), settings(tmp_path))


ROUTES: tuple[dict[str, Any], ...] = (
    {"balance": "leastconn", "protocol": "h2c", "strip": True, "timeout_s": 3600},
    {"balance": "source", "auth": "public", "lane": "gateway", "check_identity": False},
    {"balance": "uri", "auth": "read-public", "domain": "ai"},
    {"balance": "random"},
    {"balance": "first", "paths": ()},
    {"cache": True, "stream": True, "upgrade": "websocket", "idle_s": 86_400},
)


@pytest.mark.parametrize("folder", ["edge", "an edge, é"])
def test_haproxy_takes_it_without_a_warning(tmp_path: Path, folder: str) -> None:
    made = settings(tmp_path, edge_dir=tmp_path / folder, edge_bind_address="::1")
    servers = (replace(SERVER, backup=True), replace(SERVER, name="users-2", address="::1"))
    backends = [Backend(Route("gateway-ai", ("/api/composed",)), (replace(SERVER, name="gateway-ai-1"),))]
    for number, options in enumerate(ROUTES):
        route = Route(f"r{number}", (f"/api/r{number}", f"/b/c.d~e_f-{number}"))
        backends.append(Backend(replace(route, **options), servers))
    write_configuration(EdgeState(tuple(backends)), made)
    assert valid(made.config_path) == ""


def write_configuration(state: EdgeState, made: EdgeSettings) -> None:
    prepare_files(state, made)
    made.config_path.write_text(render(state, made))


def test_maps_of_the_new_and_the_present_configuration_are_kept(tmp_path: Path) -> None:
    made = settings(tmp_path)
    first, second, third = (EdgeState((Backend(Route(n, (f"/api/{n}",))),)) for n in ("one", "two", "three"))
    write_configuration(first, made)
    present = set(made.maps_dir.iterdir())
    prepare_files(second, made)
    assert len(present) == 1
    assert present < set(made.maps_dir.iterdir())
    prepare_files(third, made)
    assert len(set(made.maps_dir.iterdir())) == 2
    assert present < set(made.maps_dir.iterdir())


def test_render_is_a_function_of_its_arguments(tmp_path: Path) -> None:
    assert render(state(), settings(tmp_path)) == render(state(), settings(tmp_path))
    assert list(tmp_path.iterdir()) == []
