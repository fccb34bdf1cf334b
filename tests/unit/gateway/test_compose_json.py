"""A part's JSON: copied as it came when it is JSON of the declared shape, refused when it is anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.compose.jsonpart import NotUsable, member_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["data", "page", 'a"b', "é", "", "_parts", "data2", "\\"])


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.sampled_from([None, 2]), st.booleans())
def test_the_member_that_is_meant_is_found(
    whole: dict[str, Any], indent: int | None, ascii_only: bool
) -> None:
    body = json.dumps(whole, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        text = member_of(body, "data", "any")
    except NotUsable:
        assert "data" not in whole or "\\ud" in body.decode("utf-8", "surrogatepass") or b"\xed" in body
    else:
        assert json.loads(text) == whole["data"]
        assert text in body


def test_numbers_are_copied_as_they_are_written() -> None:
    body = b'{"data": {"a": 1.10, "b": 1e2, "c": 123456789012345678901234567890}}\n'
    assert member_of(body, "data", "object") == b'{"a": 1.10, "b": 1e2, "c": 123456789012345678901234567890}'


def test_of_a_repeated_member_the_last_counts_and_nothing_is_added_to_the_whole() -> None:
    body = b'{"data": 1, "data": {"x": 2}}'
    assert member_of(body, "data", "any") == b'{"x": 2}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":1}, "_complete":true, "x":{"data":2}',
        b'{"data":1,"user":{"admin":true}',
        b'{"data":}',
        b'{"data":1}}',
        b'{"data":1,}',
        b"",
        b" \r\n\t",
        b"<html>502 Bad Gateway</html>",
        b"data",
        b'{"data": NaN}',
        b'{"data": Infinity}',
        b'{"data": "\xff"}',
        b'{"data": "\xed\xa0\x80"}',
        b'{"data": "\\ud800"}',
        b'{"data": "\x00"}',
        b"\xef\xbb\xbf{}",
        b'{"data": 1} {"data": 2}',
        b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 400_000,
        b'{"data": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b', "page": 1}',
        b'{"data": ' + b"9" * 100_000 + b"}",
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    for name in (None, "data"):
        with pytest.raises(NotUsable):
            member_of(body, name, "any")


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (b"[]", "object"),
        (b"1", "any"),
        (b"null", "any"),
        (b'"data"', "any"),
        (b"{}", "any"),
        (b'{"Data":1}', "any"),
        (b'{"data":[]}', "object"),
        (b'{"data":{}}', "array"),
        (b'{"data":null}', "object"),
        (b'{"data":"{}"}', "object"),
        (b'{"x":{"data":{}}}', "object"),
        (b'{"data":[],"page":1}', "object"),
    ],
)
def test_another_shape_is_refused(body: bytes, shape: Any) -> None:
    with pytest.raises(NotUsable, match="shape"):
        member_of(body, "data", shape)


def test_without_a_name_all_of_the_body_is_taken() -> None:
    assert member_of(b' {"a": 1}\n', None, "object") == b'{"a": 1}'
    assert member_of(b"null", None, "any") == b"null"
