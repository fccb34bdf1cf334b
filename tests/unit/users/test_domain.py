from __future__ import annotations

import pytest

from services.kit.text import check_name
from services.users.domain import (
    check_username,
    may_change,
    may_read,
    usernames,
)

ME, OTHER = "a" * 32, "b" * 32
USER, ADMIN, SERVICE, NONE = (frozenset({s}) for s in ("user", "admin", "service", ""))


@pytest.mark.parametrize(
    ("user_id", "scopes", "reads", "changes"),
    [
        (ME, USER, True, True),
        (OTHER, USER, False, False),
        (OTHER, ADMIN, True, True),
        (OTHER, SERVICE, True, False),
        (OTHER, NONE, False, False),
    ],
)
def test_who_may_do_what(user_id: str, scopes: frozenset[str], reads: bool, changes: bool) -> None:
    assert may_read(user_id, ME, scopes) is reads
    assert may_change(user_id, ME, scopes) is changes


def test_nobody_is_nobodys_owner() -> None:
    assert not may_read(ME, None, USER)
    assert not may_change("", None, USER)


@pytest.mark.parametrize(
    ("email", "first"),
    [
        ("Ada.Lovelace@example.com", "ada-lovelace"),
        ("bob+shop@example.com", "bob-shop"),
        ("x" * 60 + "@example.com", "x" * 21),
    ],
)
def test_a_username_comes_from_the_address(email: str, first: str) -> None:
    assert next(usernames(email, ME)) == first


@pytest.mark.parametrize(
    "email", ["ada@example.com", "a@example.com", "!!!@example.com", "x" * 64 + "@e.com"]
)
def test_every_derived_username_is_a_good_one_and_the_last_is_the_ids_own(email: str) -> None:
    mine, others = list(usernames(email, ME)), list(usernames(email, OTHER))
    assert [check_username(name) for name in mine] == mine
    assert mine[-1] != others[-1]
    assert not any(ME[:8] in name for name in mine)


@pytest.mark.parametrize("bad", ["", "ab", "Ada", "-ada", "ada-", "a da", "ada\n", "x" * 31, "ädä", "../x"])
def test_bad_usernames_are_refused(bad: str) -> None:
    with pytest.raises(ValueError):
        check_username(bad)


@pytest.mark.parametrize("bad", ["", "   ", "x" * 101, "a\0b", "a\x1bb", "evil\u202ename", "\ud800"])
def test_bad_names_are_refused(bad: str) -> None:
    with pytest.raises(ValueError):
        check_name(bad)


def test_names_of_people_are_kept() -> None:
    for name in ("Ada", "Nguyễn Văn", "O'Neil-Søren", "王小明", "नेहा"):
        assert check_name(f"  {name} ")
