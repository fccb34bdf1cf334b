"""Paths that the edge and an instance might read differently, and what each line against them is worth."""

from __future__ import annotations

import pytest

from tests.security.conftest import Target, target
from tests.support.matrix import one_always

REFUSED = [
    "//api/open/x",
    "/api//open/x",
    "/api/open//x",
    "/api/open/x//",
    "http://edge.test//api/locked/x",
    "/./api/open/x",
    "/api/open/./x",
    "/api/open/.",
    "/api/open/..",
    "/api/open/../locked/x",
    "/../api/open",
    "/api/open\\..\\locked",
    "/api/open;v=1/x",
    "/api/open/x;jsessionid=1",
    "/api/open/x%00",
    "/api/open/x%0aX-Auth-Subject:%20root",
    "/api/open/x%0d%0aX",
    "/api/open/x%0D",
    "/api/open/%2e%2e/locked/x",
    "/api/open/%2E%2e/locked/x",
    "/api/open/.%2e/locked",
    "/api/open%2fx",
    "/api/open%2Fx",
    "/api/open/%5c..%5clocked",
    "/api/open/%5C",
    "/api/open/%2561dmin",
    "/api/open/%252e%252e/locked",
    "/api/open/%",
    "/api/open/%6",
    "/api/open/%zz",
    "/api/open/%%36%31",
    "/api/%u006cocked/x",
]


@pytest.mark.parametrize("path", REFUSED)
def test_path_trick_is_refused_and_reaches_no_instance(shared: Target, path: str) -> None:
    assert shared.request(path) == 400
    assert shared.upstream.heads == []


PASSED = {
    "/api/open": "/api/open",
    "/api/open/": "/api/open/",
    "/api/open/a.b/.well-known/x..y/...": "/api/open/a.b/.well-known/x..y/...",
    "/api/open/%C3%A9?q=100%&u=//x/../y;z": "/api/open/%C3%A9?q=100%&u=//x/../y;z",
    "/api/op%65n/%7Euser/a%20b": "/api/open/~user/a%20b",
    "http://edge.test/api/open/x": "/api/open/x",
}


@pytest.mark.parametrize(("sent", "seen"), PASSED.items())
def test_honest_path_passes(shared: Target, sent: str, seen: str) -> None:
    assert shared.request(sent) == 200
    assert [t.removeprefix("http://edge.test") for t in shared.targets] == [seen]


@pytest.mark.parametrize(
    "path",
    ["/api/openX", "/api/open.json", "/api/ope", "/API/open/x", "/api", "/", "*", "/edge/x", "/health/other"],
)
def test_path_of_no_service_is_404(shared: Target, path: str) -> None:
    assert shared.request(path, method="OPTIONS" if path == "*" else "GET") == 404
    assert shared.upstream.heads == []


@pytest.mark.parametrize(
    "path", ["/api/%6cocked/x", "/%61pi/locked/x", "/api/locke%64", "/%61%70%69/locked/x"]
)
def test_disguised_path_meets_the_same_lock(shared: Target, path: str) -> None:
    assert shared.request(path) == 401
    assert shared.upstream.heads == []


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/internal/users/x", "/internal", "/%6detrics"])
@pytest.mark.parametrize("prefix", ["", "/api/plain"])
def test_inner_paths_are_never_routed(shared: Target, prefix: str, path: str) -> None:
    assert shared.request(prefix + path) == 404
    assert shared.upstream.heads == []


def test_stripped_path_reaches_the_instance(shared: Target) -> None:
    assert shared.request("/api/plain/a/b?c=/api/plain/") == 200
    assert shared.request("/api/plain/a/b?c=/api/plain/") == 200
    assert shared.targets == ["/a/b?c=/api/plain/"]
    assert shared.request("/api/plain") == 200
    assert shared.targets == ["/"]


@pytest.mark.parametrize(
    ("path", "seen", "prefix"),
    [
        ("/api/plain", "/", "/api/plain"),
        ("/api/plain/innermost", "/innermost", "/api/plain"),
        ("/api/plain/inner", "/", "/api/plain/inner"),
        ("/api/plain/inner/x?y", "/x?y", "/api/plain/inner"),
    ],
)
def test_instance_learns_the_prefix_that_was_taken_off(
    shared: Target, path: str, seen: str, prefix: str
) -> None:
    assert shared.request(path, "X-Forwarded-Prefix: /evil") == 200
    assert shared.targets == [seen]
    assert shared.upstream.requests[0].all("x-forwarded-prefix") == [prefix]


@pytest.mark.parametrize("method", ["TRACE", "CONNECT"])
def test_method_that_is_no_business_of_an_instance(shared: Target, method: str) -> None:
    path = "edge.test:80" if method == "CONNECT" else "/api/open/x"
    assert shared.request(path, method=method) in (400, 405)
    assert shared.upstream.heads == []


# A piece of the configuration, what takes its place, the attack that then gets through, and what the instance is asked.
LINES = {
    "path rule": ("{ path -m reg -i", "{ always_false } { path -m reg -i", "/api/open/../locked/x"),
    "double slash": ("'//|", "'", "/api/open//x"),
    "dot segments": (r"/\.\.?(?:/|$)|", "", "/api/open/../locked/x"),
    "backslash and semicolon": (r"[\\;]|", "", "/api/open/x;y"),
    "NUL": ("%(?:00|", "%(?:", "/api/open/x%00"),
    "line feed": ("|0a|", "|", "/api/open/x%0a"),
    "carriage return": ("|0d|", "|", "/api/open/x%0d"),
    "encoded dot": ("|2e|", "|", "/api/open/%2e%2e/locked"),
    "encoded slash": ("|2f|", "|", "/api/open/x%2fy"),
    "encoded backslash": ("|5c|", "|", "/api/open/%5c"),
    "encoded percent": ("|25|", "|", "/api/open/%2561"),
    "broken escape": ("(?![0-9a-f]{2})", "zz", "/api/open/%%36%31"),
    "decoding": ("http-request normalize-uri percent-decode-unreserved", "", "/api/plain/%6detrics"),
    "inner paths": (
        "deny_status 404 if { path /metrics /internal }",
        "deny_status 404 if { path /x }",
        "/api/plain/metrics",
    ),
    "method rule": ("{ method TRACE CONNECT }", "{ always_false }", "TRACE"),
}


@pytest.mark.parametrize(("line", "instead", "attack"), one_always(*LINES.values()), ids=LINES.keys())
def test_attack_gets_through_without_its_line(line: str, instead: str, attack: str) -> None:
    with target((line, instead)) as open_target:
        if attack == "TRACE":
            open_target.request("/api/open/x", method="TRACE")
        else:
            open_target.request(attack)
        assert open_target.upstream.heads, "the line under test does nothing against this attack"
