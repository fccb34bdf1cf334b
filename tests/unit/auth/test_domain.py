from __future__ import annotations

import pytest

from services.auth.domain import (
    KeyTimes,
    check_email,
    check_password,
    email_key,
    narrow,
    schedule,
    source_of,
)


@pytest.mark.parametrize("email", ["ada@example.com", "a.b+c@sub.example.co", "o'neil@example.org"])
def test_ordinary_addresses_are_taken(email: str) -> None:
    assert check_email(f" {email} ") == email


@pytest.mark.parametrize(
    "email",
    ["", "ada", "@example.com", "ada@", "ada@localhost", "ada@@example.com", "a..b@example.com", ".a@example.com",
     "ada@exa mple.com", "ada@-example.com", "ada@example.com\n.evil", "ada@127.0.0.1", "ädä@example.com",
     "ada@example.com\0", "a" * 65 + "@example.com", "a@" + "b" * 63 + ("." + "c" * 63) * 3],
)  # fmt: skip
def test_what_is_no_address_is_refused(email: str) -> None:
    with pytest.raises(ValueError, match="e-mail"):
        check_email(email)


def test_case_and_space_do_not_make_another_account() -> None:
    assert email_key(" Ada@Example.COM") == email_key("ada@example.com")


def test_password_bounds_are_characters_below_and_bytes_above() -> None:
    assert check_password("12345678") == "12345678"
    assert check_password("ä" * 512)
    for bad in ("1234567", "ä" * 513, "x" * 1025, "abc\ud800defgh"):
        with pytest.raises(ValueError):
            check_password(bad)


def test_compatible_spellings_of_a_password_are_one_password() -> None:
    assert check_password("caf\u00e9 noir") == check_password("cafe\u0301 noir")


def test_nobody_gets_a_scope_that_is_not_held() -> None:
    assert narrow(["admin", "user"], ["user"]) == ("user",)
    assert narrow(None, ["admin", "user"]) == ("user", "admin")
    assert narrow(["root"], ["root"]) == ()


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("rubbish", "unknown"),
        (None, "unknown"),
    ],
)
def test_source_is_the_network_of_one_customer(client: str | None, expected: str) -> None:
    assert source_of(client) == expected


OLD, NEW, NEXT = KeyTimes("old", 1, 1000.0), KeyTimes("new", 2, 5000.0), KeyTimes("next", 3, 9000.0)


def test_no_keys_is_no_schedule() -> None:
    assert schedule([], 0.0, 960) is None


def test_order_comes_from_the_generation_not_from_the_rows() -> None:
    keys = schedule([NEXT, OLD, NEW], 6000.0, 10_000)
    assert keys is not None
    assert (keys.active, keys.next, keys.retired) == (NEW, NEXT, (OLD,))


def test_a_first_key_from_a_clock_ahead_of_ours_signs_all_the_same() -> None:
    keys = schedule([OLD], 999.0, 960)
    assert keys is not None
    assert keys.active == OLD
    assert keys.next is None
