"""Declarations: what is shipped can be used, and a wrong file is refused whole, with the place of each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from discovery.model import Domain
from gateway.compose.config import Declaration, DeclarationError, load

GOOD = """
[[route]]
name = "pair"
path = "/api/<a>/<b>"
placeholders = { a = "[0-9]+", b = "[a-z]+" }

[route.parts.left]
service = "lefts"
path = "/api/lefts/<a>"
required = true

[route.parts.right]
service = "rights"
path = "/api/rights/<b>?of=<a>"
"""


def declared(folder: Path, text: str) -> Declaration:
    (folder / "business.toml").write_text(text)
    return load("business", folder)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(DeclarationError) as caught:
        declared(folder, text)
    assert all(line.startswith("business.toml: ") for line in caught.value.problems)
    return str(caught.value)


@pytest.mark.parametrize("domain", get_args(Domain))
def test_what_is_shipped_can_be_used(domain: Domain) -> None:
    load(domain)


def test_the_first_routes_are_declared() -> None:
    business = load("business")
    routes = {route.path: route for route in business.route}
    assert set(routes) == {"/api/<user_id>/<product_id>", "/api/overview"}
    assert list(routes["/api/<user_id>/<product_id>"].parts) == ["user", "product"]
    overview = routes["/api/overview"]
    assert overview.auth == "token"
    assert {name for name, part in overview.parts.items() if not part.required} >= {
        "orders",
        "tickets",
        "notifications",
    }
    assert business.health is not None
    assert business.health.path == "/api/health"
    assert business.fixed_paths == ["/api/health", "/api/overview"]


def test_parts_keep_the_order_of_the_file(tmp_path: Path) -> None:
    assert list(declared(tmp_path, GOOD).route[0].parts) == ["left", "right"]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("required = true", "requird = true", "route pair: parts.left.requird: Extra inputs"),
        ("required = true", 'required = "yes"', "route pair: parts.left.required: "),
        ("required = true", "share = 1.5", "route pair: parts.left.share: "),
        ("required = true", "share = 0", "route pair: parts.left.share: "),
        ("required = true", "max_bytes = 100000000", "route pair: parts.left.max_bytes: "),
        ("required = true", 'fallback = "invent"', "route pair: parts.left.fallback: "),
        ("required = true", 'fallback = "empty"', "route pair: parts.left: fallback"),
        ("required = true", "cache = { ttl_s = -1 }", "route pair: parts.left.cache.ttl_s: "),
        ("required = true", 'cache = { ttl_s = 1, scope = "all" }', "route pair: parts.left.cache.scope: "),
        ("required = true", 'headers = ["Authorization"]', "route pair: parts.left.headers.0: is no header"),
        ("required = true", 'headers = ["X-Auth-Subject"]', "route pair: parts.left.headers.0: is no header"),
        ("required = true", 'headers = ["X-Edge-Route"]', "route pair: parts.left.headers.0: is no header"),
        ("required = true", 'headers = ["If-None-Match"]', "route pair: parts.left.headers.0: is no header"),
        ("required = true", 'headers = ["a: b"]', "route pair: parts.left.headers.0: is no header"),
        (
            "required = true",
            'headers = ["X-A"]\ncache = { ttl_s = 1 }',
            "route pair: parts.left: what is kept",
        ),
        ('"/api/lefts/<a>"', '"/api/lefts/<c>"', "route pair: part left: path: <c> is not known"),
        ('"/api/lefts/<a>"', '"/api/me/<subject>"', "route pair: part left: path: <subject> is not known"),
        ('"/api/lefts/<a>"', '"/api/../<a>"', "route pair: parts.left: '..' is no segment"),
        ('"lefts"', '"-lefts"', "route pair: parts.left.service: must be"),
        ('"lefts"', '"users\\nX"', "route pair: parts.left.service: must be"),
        ("[0-9]+", "[0-9", "route pair: the pattern of <a>"),
        ("/api/<a>/<b>", "/api/<a>", "route pair: placeholders and patterns do not agree on: b"),
        ("[route.parts.left]", '[route.parts."_parts"]', "route pair: part '_parts': no name for a member"),
        ("[route.parts.left]", '[route.parts."a\\"b"]', "no name for a member"),
        ('name = "pair"', 'name = "pair"\ntimeout_s = 0', "route pair: timeout_s: "),
        ('name = "pair"', 'name = "pair"\nmethods = ["POST"]', "route pair: methods.0: "),
        ('name = "pair"', 'name = "pair"\nmethods = []', "route pair: methods: "),
        ('name = "pair"', "", "route 1: name: Field required"),
        ("[[route]]", "[[routes]]", "routes: Extra inputs"),
        ("[[route]]", "[[route]", "no TOML: "),
        ('service = "lefts"', 'service = "lefts"\nservice = "lefts"', "no TOML: "),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, before: str, after: str, told: str) -> None:
    assert before in GOOD
    assert told in refused(tmp_path, GOOD.replace(before, after, 1))


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("required = true", "share = 2").replace('"rights"', '"-rights"')
    assert len(refused(tmp_path, text).splitlines()) == 2


def test_a_wrong_route_takes_the_right_ones_with_it(tmp_path: Path) -> None:
    """Half a file is never loaded."""
    refused(tmp_path, GOOD + GOOD.replace('"pair"', '"other"').replace("required = true", "share = 2"))


def test_two_routes_with_one_name_or_one_path_are_refused(tmp_path: Path) -> None:
    assert "two routes with the name 'pair'" in refused(
        tmp_path, GOOD + GOOD.replace("/api/<a>", "/apis/<a>")
    )
    renamed = GOOD.replace('"pair"', '"other"').replace("<a>", "<c>").replace("a =", "c =")
    assert "two routes with the path" in refused(tmp_path, GOOD + renamed)


def test_health_and_a_route_on_one_path_are_refused(tmp_path: Path) -> None:
    assert "is a route's as well" in refused(tmp_path, '[health]\npath = "/api/1/a"\n' + GOOD)


def test_a_file_that_is_missing_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"ai\.toml: cannot be read"):
        load("ai", tmp_path)
    (tmp_path / "ai.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DeclarationError, match=r"ai\.toml: no TOML"):
        load("ai", tmp_path)


def test_placeholders_of_the_token_need_a_token(tmp_path: Path) -> None:
    text = GOOD.replace('name = "pair"', 'name = "pair"\nauth = "token"').replace("of=<a>", "of=<subject>")
    assert (
        declared(tmp_path, text).route[0].parts["right"].target.fill({"b": "x", "subject": "u&1"})
        == "/api/rights/x?of=u%261"
    )
