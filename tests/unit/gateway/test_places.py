"""Places: bounds in all and of one holder, and what counts as one."""

from __future__ import annotations

import pytest

from gateway.limits.loadshed import Places, source


def test_bounds_hold_and_what_is_left_can_be_had_again() -> None:
    places = Places(3, 2)
    first, second = places.take("a"), places.take("a")
    assert first is not None
    assert second is not None
    assert places.take("a") is None
    assert places.take("b") is not None
    assert places.take("c") is None, "all are taken"
    first.leave()
    first.leave()
    assert places.taken == 2
    assert places.take("a") is not None
    assert places.take("a") is None


def test_nothing_is_remembered_of_holders_that_have_left() -> None:
    places = Places(None, 1)
    for number in range(100):
        place = places.take(str(number))
        assert place is not None
        place.leave()
    assert places.holders == {}


@pytest.mark.parametrize(
    ("address", "holder"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("no:address", "no:address"),
    ],
)
def test_a_customer_of_ipv6_is_one_holder(address: str, holder: str) -> None:
    assert source(address) == holder
