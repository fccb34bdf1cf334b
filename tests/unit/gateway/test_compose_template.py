"""Path templates: what a placeholder takes, and that no value leaves its place in what is sent."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.compose.template import MAX_VALUE_CHARS, RoutePath, TargetPath, decoded

HEX = "[0-9a-f]{32}"
U, P = "a1" * 16, "0f" * 16
PAIR = RoutePath("/api/<user_id>/<product_id>", {"user_id": HEX, "product_id": HEX})
ANY = RoutePath("/api/<word>/end", {"word": ".*"})


def test_placeholders_take_one_segment_each() -> None:
    assert PAIR.match(f"/api/{U}/{P}") == {"user_id": U, "product_id": P}


@pytest.mark.parametrize(
    "path",
    [
        "/api/overview",
        "/api/health",
        "/api/quota/x",
        f"/api/{U}",
        f"/api/{U}/",
        f"/api/{U}/{P}/",
        f"/api/{U}/{P}/more",
        f"/api//{U}/{P}",
        f"/api/{U}/{P}\n",
        f"/api/{U.upper()}/{P}",
        f"/api/{U}/{P}0",
        f"/api/{U}x/{P}",
        f"/api/{U}%00/{P}",
        f"/api/{'%ff' * 32}/{P}",
        f"x/api/{U}/{P}",
        f"/API/{U}/{P}",
    ],
)
def test_what_does_not_fit_is_not_this_route(path: str) -> None:
    assert PAIR.match(path) is None


def test_encoded_characters_are_decoded_before_they_are_matched() -> None:
    assert PAIR.match(f"/api/%61{U[1:]}/{P}") == {"user_id": U, "product_id": P}
    assert ANY.match("/api/caf%C3%A9/end") == {"word": "café"}


@pytest.mark.parametrize(
    "segment", [".", "..", "%2e", "%2E%2e", "%00", "a%0d%0ab", "%c0%ae", "%ed%a0%80", "a" * 201, "%e2%80%ae"]
)
def test_no_placeholder_takes_what_could_be_read_as_something_else(segment: str) -> None:
    assert decoded(segment) is None
    assert ANY.match(f"/api/{segment}/end") is None


def test_a_dot_in_a_template_is_a_dot() -> None:
    assert RoutePath("/a.b", {}).match("/axb") is None


@pytest.mark.parametrize(
    "value", ["", ".", "..", "a\x00", "a\r\nX: y", "\u202e", "x" * (MAX_VALUE_CHARS + 1)]
)
def test_values_that_cannot_stand_in_a_path_are_refused(value: str) -> None:
    with pytest.raises(ValueError, match="cannot stand"):
        TargetPath("/x/<it>").fill({"it": value})


@given(st.text(max_size=40))
def test_no_value_reaches_another_path(value: str) -> None:
    """Whatever the value: the target has the same segments, and the value comes out of its own as it was."""
    target = TargetPath("/api/users/<it>/end?q=<it>")
    try:
        sent = target.fill({"it": value})
    except ValueError:
        return
    path, _, query = sent.partition("?")
    assert sent.isascii()
    assert sent.isprintable()
    assert "#" not in sent
    segments = path.split("/")
    assert segments[:3] == ["", "api", "users"]
    assert segments[4:] == ["end"]
    assert segments[3] not in ("", ".", "..")
    assert unquote(segments[3], errors="strict") == value
    assert parse_qsl(query, keep_blank_values=True) == [("q", value)]


@given(st.text(alphabet=st.sampled_from("ab./%25eEfF0?#;\\é"), max_size=12))
def test_what_is_taken_from_a_path_is_sent_on_in_one_segment(segment: str) -> None:
    values = ANY.match(f"/api/{segment}/end")
    if values is not None:
        sent = TargetPath("/x/<word>/y").fill(values)
        assert sent.count("/") == 3
        assert "?" not in sent


@pytest.mark.parametrize(
    ("template", "patterns", "why"),
    [
        ("api", {}, "start with /"),
        ("/", {}, "start with /"),
        ("/a//b", {}, "no segment"),
        ("/a/../b", {}, "no segment"),
        ("/a/%2e", {}, "no segment"),
        ("/a/x<id>", {"id": "a"}, "whole"),
        ("/a/<id>", {}, "do not agree on: id"),
        ("/a", {"id": "a"}, "do not agree on: id"),
        ("/a/<id>/<id>", {"id": "a"}, "twice"),
        ("/a/<Id>", {"Id": "a"}, "no placeholder"),
        ("/a/<id>", {"id": "["}, "pattern of <id>"),
    ],
)
def test_wrong_templates_are_refused(template: str, patterns: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        RoutePath(template, patterns)


@pytest.mark.parametrize("template", ["x", "/a b", "/a?q= b", "/a?q=%2", "/a#b", "/<a>b", "/a?q=é", "/é"])
def test_wrong_targets_are_refused(template: str) -> None:
    with pytest.raises(ValueError):
        TargetPath(template)
