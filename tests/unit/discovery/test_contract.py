"""Which values may come near a configuration: an allow-list, attacked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.contract import (
    Policy,
    check_address,
    check_instance_id,
    check_instance_name,
    check_name,
    check_own_id,
    check_own_name,
    check_path,
    check_port,
    check_prefix,
    instance_name,
    parse_networks,
    parse_placement,
    parse_route,
    registration_meta,
    route_meta,
)
from discovery.errors import ContractError
from discovery.model import Instance, Registration, Route

# What turns a value into code, or into another address, somewhere on its way.
POISON = [
    "a\nb",
    "a\r\nb",
    "a\x00b",
    "a;b",
    "a b",
    "a'b",
    'a"b',
    "a\\b",
    "%[env(X)]",
    "${X}",
    "$(id)",
    "`id`",
    "a#b",
    "unix@/tmp/x",
    "abns@x",
    "fd@3",
    "../x",
    "é",
    "ａ",
    "",
    "x" * 300,
]


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize(
    "check",
    [
        check_name,
        check_own_name,
        check_own_id,
        check_instance_name,
        lambda value: check_path("/" + value),
        lambda value: check_path("/api/" + value),
        check_address,
        lambda value: parse_route("users", {"edge-path": "/a/" + value}),
        lambda value: parse_route("users", {"edge-path": "/a", "edge-balance": value}),
        lambda value: parse_route("users", {"edge-path": "/a", "edge-auth": value}),
        lambda value: parse_route("users", {"edge-path": "/a", "edge-timeout": value}),
        lambda value: parse_route("users", {"edge-path": "/a", "edge-idle": value}),
        lambda value: parse_route("users", {"edge-path": "/a", "edge-cache": value}),
        lambda value: parse_route("users", {"edge-path": "/a", "edge-stream": value}),
        lambda value: parse_route("users", {"edge-path": "/a", "edge-upgrade": value}),
        lambda value: parse_route("users", {"edge-path": "/a", "edge-check": value}),
        lambda value: parse_placement(
            Instance("users", "u", "n", "127.0.0.1", 1, meta={"edge-weight": value}), Policy()
        ),
    ],
)
def test_poison_is_refused_everywhere(check: Callable[[str], object], poison: str) -> None:
    with pytest.raises(ContractError):
        check(poison)


@pytest.mark.parametrize("name", ["a", "users", "a-b", "9", "a" * 63])
def test_good_names_pass(name: str) -> None:
    assert check_name(name) == check_own_name(name) == name


@pytest.mark.parametrize("name", ["A", "MyApp", "a-", "a_b", "go.micro.srv.greeter"])
def test_names_of_foreign_programs_may_be_what_consul_takes(name: str) -> None:
    assert check_name(name) == name
    with pytest.raises(ContractError):
        check_own_name(name)


@pytest.mark.parametrize("name", ["-a", "_a", ".a", "a" * 64])
def test_names_of_another_shape_are_refused(name: str) -> None:
    with pytest.raises(ContractError):
        check_name(name)


@pytest.mark.parametrize("id_", ["host:app:9095", "_nomad-task", "a b;c", "é", "x" * 128, "'\"\\<>"])
def test_any_printable_id_is_taken(id_: str) -> None:
    assert check_instance_id(id_) == id_


@pytest.mark.parametrize("id_", ["", "x" * 129, "a\nb", "a\x00b", "a\x7fb", "\ud800", "a\u200bb"])
def test_ids_that_cannot_be_printed_are_refused(id_: str) -> None:
    with pytest.raises(ContractError):
        check_instance_id(id_)


@pytest.mark.parametrize("id_", ["users-1", "_nomad-task.1", "9", "x" * 80])
def test_a_plain_id_is_the_name_of_its_instance(id_: str) -> None:
    assert instance_name(id_) == id_


def test_a_made_name_can_be_read_and_is_no_plain_id() -> None:
    name = instance_name("host:app:9095")
    assert name.startswith("host-app-9095.")
    assert instance_name(name) != name
    assert instance_name("a", "node-2") != instance_name("a", "node-1")


@given(
    st.text(st.characters(categories=("L", "N", "P", "S"), include_characters=" "), min_size=1, max_size=128)
)
def test_every_id_has_a_name_that_needs_no_escaping(id_: str) -> None:
    assert check_instance_name(instance_name(id_)) == instance_name(id_)
    assert check_instance_name(instance_name(id_, "node"))


@pytest.mark.parametrize(
    "path", ["/", "//", "/a/", "/a//b", "/a/.", "/a/..", "/.git", "/a/%2e", "a", "/a?b", "/a:b"]
)
def test_paths_with_a_second_reading_are_refused(path: str) -> None:
    with pytest.raises(ContractError):
        check_path(path)


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/edge", "/edge/x"])
def test_prefixes_of_the_edge_belong_to_nobody(path: str) -> None:
    with pytest.raises(ContractError):
        check_prefix(path)
    assert check_prefix("/healthy") == "/healthy"


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "fe80::1%lo", "localhost", "127.1", "0177.0.0.1"],
)
def test_addresses_outside_the_networks_are_refused(address: str) -> None:
    with pytest.raises(ContractError):
        check_address(address)


def test_addresses_inside_come_back_canonical() -> None:
    assert check_address("::0001") == "::1"
    assert check_address("10.1.2.3", parse_networks("10.0.0.0/8")) == "10.1.2.3"


@pytest.mark.parametrize("port", [0, -1, 65536, True, "80", 8500])
def test_bad_and_control_ports_are_refused(port: object) -> None:
    with pytest.raises(ContractError):
        check_port(port, frozenset({8500}))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["0", "257", "１", "1_0", "+1", "1.0", " 1", "1\n"])
def test_numbers_are_plain_digits_in_range(value: str) -> None:
    with pytest.raises(ContractError):
        parse_placement(Instance("u", "u", "n", "127.0.0.1", 1, meta={"edge-weight": value}), Policy())


def test_no_path_means_no_route() -> None:
    assert parse_route("users", {"edge-auth": "public"}) is None


def test_defaults_are_those_of_the_contract() -> None:
    route = parse_route("users", {"edge-path": "/api/users, /api/people"})
    assert route == Route("users", ("/api/users", "/api/people"))
    assert (route.balance, route.auth, route.lane, route.domain) == (
        "roundrobin",
        "jwt",
        "direct",
        "business",
    )
    assert (route.check, route.warning, route.protocol, route.strip, route.timeout_s) == (
        "/health/ready",
        "serve",
        "http",
        False,
        30,
    )
    assert (route.idle_s, route.cache, route.stream, route.upgrade) == (60, False, False, "none")


def test_seventeen_paths_are_too_many() -> None:
    with pytest.raises(ContractError):
        parse_route("users", {"edge-path": ",".join(f"/a{number}" for number in range(17))})


ROUTES = st.builds(
    Route,
    service=st.just("users"),
    paths=st.lists(
        st.sampled_from(["/a", "/a/b", "/a1/~x", "/api/users_", "/x-y/z"]), min_size=1, unique=True
    ).map(tuple),
    balance=st.sampled_from(["roundrobin", "leastconn", "source", "random", "first", "uri"]),
    auth=st.sampled_from(["public", "read-public", "jwt"]),
    lane=st.sampled_from(["direct", "gateway"]),
    domain=st.sampled_from(["identity", "business", "ai"]),
    check_identity=st.booleans(),
    warning=st.sampled_from(["serve", "skip"]),
    protocol=st.sampled_from(["http", "h2c"]),
    strip=st.booleans(),
    timeout_s=st.integers(1, 3600),
    idle_s=st.integers(1, 86_400),
    cache=st.booleans(),
    stream=st.booleans(),
    upgrade=st.sampled_from(["none", "websocket"]),
)


@given(ROUTES)
def test_route_survives_its_metadata(route: Route) -> None:
    assert parse_route("users", route_meta(route)) == route


@pytest.mark.parametrize(
    "registration",
    [
        Registration("-users", "127.0.0.1", 1, "u"),
        Registration("users", "localhost", 1, "u"),
        Registration("users", "127.0.0.1", 0, "u"),
        Registration("users", "127.0.0.1", 1, "u/../x"),
        Registration("users", "127.0.0.1", 1, "u", weight=0),
        Registration("users", "127.0.0.1", 1, "u", meta={"edge-path": "/x"}),
        Registration("users", "127.0.0.1", 1, "u", meta={"a.b": "x"}),
        Registration("users", "127.0.0.1", 1, "u", meta={"a": "x" * 513}),
        Registration("users", "127.0.0.1", 1, "u", route=Route("users", ("/health",))),
    ],
)
def test_registration_that_the_edge_would_refuse_is_refused_here(registration: Registration) -> None:
    with pytest.raises(ContractError):
        registration_meta(registration)
