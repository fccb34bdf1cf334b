from __future__ import annotations

import pytest

from services.notifications.domain import MAX_BODY, excerpt, one_line, retry_s, usernames, welcome


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("Ada", "Ada"),
        ("Ada\r\nBcc: all@example.com", "Ada Bcc: all@example.com"),
        ("a\x85b\u2028c\u2029d\x0be\x00f", "a b c d e f"),
        ("\ud800Ada", "Ada"),
        ("  {{ 7*7 }}  ", "{{ 7*7 }}"),
    ],
)
def test_whatever_a_name_holds_it_is_one_line(given: str, line: str) -> None:
    assert one_line(given) == line
    assert "\n" not in welcome("u", given).title


def test_long_texts_end_in_an_ellipsis() -> None:
    assert one_line("x" * 300) == "x" * 199 + "…"
    assert len(excerpt("é" * 5000)) == MAX_BODY
    assert excerpt("a\r\nb\x1b[31mc") == "a\nb[31mc"


def test_mentions_are_names_each_once_and_not_without_end() -> None:
    assert usernames(["ada", "Ada", "x", "a b", "bob-1", "é" * 5, "a" * 31]) == ["ada", "bob-1"]
    assert len(usernames([f"user{n}" for n in range(100)])) == 20


def test_pauses_grow_to_a_quarter_of_an_hour_and_are_left_to_chance() -> None:
    assert [retry_s(n, 1.0) for n in (1, 2, 3, 10, 1000)] == [2, 4, 8, 900, 900]
    assert retry_s(5, 0.0) == 0.0
