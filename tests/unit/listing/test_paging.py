"""Cursors and entity tags: whatever a client sends is an answer or a clean refusal."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.text import iso, one_line, prose
from services.kit.web.paging import MAX_CURSOR_LENGTH, BadCursor, decode_cursor, encode_cursor, scope_of


def forged(*values: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).rstrip(b"=").decode()


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=120),
)
def test_keys_come_back(number: int, name: str) -> None:
    cursor = encode_cursor("s", (name, number))
    assert len(cursor) <= MAX_CURSOR_LENGTH
    assert decode_cursor(cursor, "s", (str, int)) == (name, number)


@given(st.text(max_size=200))
def test_any_text_is_a_cursor_or_refused(text: str) -> None:
    with pytest.raises(BadCursor):
        decode_cursor(text, "scope", (int,))


@pytest.mark.parametrize(
    "values",
    [
        ("s",),
        ("s", 1, 2),
        ("s", "1"),
        ("s", True),
        ("s", 1.5),
        ("s", None),
        ("s", 2**63),
        ("s", -(2**63) - 1),
        ("t", 1),
        (1, 1),
    ],
)
def test_forged_cursor_is_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(BadCursor):
        decode_cursor(forged(*values), "s", (int,))


@pytest.mark.parametrize(
    "text", [forged("s", "\ud800"), forged("s", "a\0b"), base64.urlsafe_b64encode(b"[" * 1000).decode()]
)
def test_what_no_database_and_no_parser_takes_is_refused(text: str) -> None:
    with pytest.raises(BadCursor):
        decode_cursor(text, "s", (str,))


def test_scope_tells_empty_from_missing_filters() -> None:
    assert len({scope_of(None, "a"), scope_of("", "a"), scope_of("a", None), scope_of("None", "a")}) == 4


def test_control_characters_are_no_text() -> None:
    assert prose("a\n\tb") == "a\n\tb"
    for check, text in ((one_line, "a\nb"), (prose, "\x1b[31m"), (prose, "\0"), (prose, "\udfff")):
        with pytest.raises(ValueError, match="control"):
            check(text)


def test_times_are_rfc_3339() -> None:
    assert iso(1_700_000_000_000_001) == "2023-11-14T22:13:20.000001Z"
