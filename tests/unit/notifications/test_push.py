"""Where a push may go: never into our own network."""

from __future__ import annotations

import pytest

from services.notifications.delivery.courier import Refused
from services.notifications.delivery.push import Vapid, _address_of, check_endpoint, check_keys, is_public


@pytest.mark.parametrize(
    "url",
    [
        "http://push.example.com/x",
        "https://push.example.com:8443/x",
        "https://127.0.0.1/x",
        "https://[::1]/x",
        "https://localhost/x",
        "https://intranet/x",
        "https://user@push.example.com/x",
        "https://push.example.com\\@127.0.0.1/x",
        "https://push.example.com/x y",
        "https://push.example.com/x\r\nHost: y",
        "https://push.example.com/#x",
        "https:///x",
        "file:///etc/passwd",
        "https://2130706433/x",
        "https://pußh.example.com/",
        "https://push.example.com/" + "x" * 1000,
    ],
)
def test_addresses_that_no_push_service_has_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        check_endpoint(url)


def test_public_names_are_taken() -> None:
    for url in ("https://fcm.googleapis.com/fcm/send/a:b", "https://push.example.com:443/x?y=1"):
        assert check_endpoint(url).scheme == "https"
    assert check_endpoint("http://127.0.0.1:8/x", allow_private=True).port == 8


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.30.71.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.1.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:1:1:1:1:80ff:fffe", False),
    ],
)
def test_addresses_of_our_own_are_known(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_name_that_leads_to_this_machine_is_refused_when_it_is_called() -> None:
    with pytest.raises(Refused):
        _address_of("localhost", 443, allow_private=False)
    assert _address_of("localhost", 443, allow_private=True) == "127.0.0.1"


@pytest.mark.parametrize("keys", [("", ""), ("A" * 87, "A" * 22), ("é", "x"), ("B" + "A" * 86, "A" * 22)])
def test_keys_that_no_message_can_be_encrypted_for_are_refused(keys: tuple[str, str]) -> None:
    with pytest.raises(ValueError):
        check_keys(*keys)


def test_a_private_key_gives_its_public_one() -> None:
    vapid = Vapid("A" * 42 + "E", "a@example.com")
    assert len(vapid.public_key) == 87
    signed = vapid.headers(check_endpoint("https://push.example.com/x"))
    assert signed["Authorization"].endswith(f"k={vapid.public_key}")
    with pytest.raises(ValueError):
        Vapid("", "a@example.com")
