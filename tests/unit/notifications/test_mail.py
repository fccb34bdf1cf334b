"""Mails as they are written: nothing that a person is called becomes a header, or markup."""

from __future__ import annotations

from email import message_from_bytes
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import default

import pytest

from services.notifications.delivery.courier import Refused
from services.notifications.delivery.mail import compose
from services.notifications.domain import Notification, Person, welcome

SENDER = Address("Breakwater", "no-reply", "breakwater.example")
NAMES = [
    "{{ 7*7 }}",
    "{% for x in y %}",
    "<script>alert(1)</script>",
    "Ada\r\nBcc: everybody@example.com",
    "Ada\nSubject: other",
    "Ada\x85Bcc: x@example.com\u2028y",
    'Ada" <evil@example.com>, "x',
    "=?utf-8?q?Bcc=3A?= x",
    "Zoë 🦀 א",
    "a" * 100,
    "\ud800",
    "",
    ".",
    "\n.\nDATA",
]


def mail(first_name: str, *, email: str = "ada@example.com", **values: object) -> EmailMessage:
    new = welcome("u", first_name)
    fields = {"kind": "welcome", "title": new.title, "body": new.body, **values}
    one = Notification(
        1, "f" * 32, "u", actor_id=None, post_id=None, read_us=None, created_us=10**15, **fields
    )  # type: ignore[arg-type]
    raw = compose(one, Person("u", email, first_name, "L", None), SENDER).as_bytes()
    assert raw.isascii()
    assert all(line.endswith(b"\r\n") and len(line) <= 1000 for line in raw.splitlines(keepends=True))
    return message_from_bytes(raw, policy=default)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_text_whatever_is_in_it(name: str) -> None:
    read = mail(name)
    assert sorted(read.keys()) == sorted(
        ["To", "From", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"]
    )
    (recipient,) = read["To"].addresses
    assert recipient.addr_spec == "ada@example.com"
    text, html = (read.get_body((kind,)).get_content() for kind in ("plain", "html"))
    assert "<script" not in html
    if name in ("{{ 7*7 }}", "{% for x in y %}", "<script>alert(1)</script>", "Zoë 🦀 א"):
        assert f"Hello {name}," in text
        assert name in str(read["Subject"])
    assert "49" not in text + html


@pytest.mark.parametrize("kind", ["comment", "reply", "mention"])
def test_what_somebody_wrote_is_text_in_both_parts(kind: str) -> None:
    read = mail("Ada", kind=kind, title="New comment", body="<b>hi</b> {{ 7*7 }}\n.\n.a line")
    text, html = (read.get_body((part,)).get_content().replace("\r\n", "\n") for part in ("plain", "html"))
    assert "<b>hi</b> {{ 7*7 }}\n.\n.a line" in text
    assert "&lt;b&gt;hi&lt;/b&gt; {{ 7*7 }}" in html


def test_every_attempt_has_the_same_id_and_date() -> None:
    first, second = mail("Ada"), mail("Ada")
    assert first["Message-ID"] == second["Message-ID"] == f"<{'f' * 32}@breakwater.example>"
    assert first["Date"] == second["Date"]


@pytest.mark.parametrize(
    "email", ["", "ada", "@example.com", "ada@", "ädä@example.com", "a b@c@d", "ada\n@example.com"]
)
def test_an_address_that_is_none_is_refused(email: str) -> None:
    with pytest.raises(Refused):
        mail("Ada", email=email)
