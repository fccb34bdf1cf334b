"""Mails to real SMTP servers: what each answer, and each lost one, makes of a delivery."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.notifications.delivery.courier import Away, InDoubt, Later, Parcel, Refused
from services.notifications.delivery.mail import Mail
from services.notifications.domain import Notification, Person, welcome
from services.notifications.settings import NotificationSettings
from tests.support.mail_server import Held, inbox
from tests.support.servers import free_port


def parcel(body: str = "Hello.") -> Parcel:
    new = welcome("u", "Ada")
    told = Notification(1, "f" * 32, "u", "welcome", new.title, body, None, None, None, 10**15)
    person = Person("u", "ada@example.com", "Ada", "L", None)
    return Parcel(1, "d", 1, 1, 10**15, told, person, None)


def send(url: str, *, body: str = "Hello.", **settings: object) -> list[str]:
    """What was handed over, which is nothing, or once."""
    handed: list[str] = []
    quick = {"smtp_url": url, "smtp_timeout_s": 2.0, "smtp_answer_timeout_s": 2.0, "port": 1, **settings}
    mail = Mail(NotificationSettings(**quick))  # type: ignore[arg-type]
    try:
        mail.send(parcel(body), lambda: handed.append("handed"))
    except Exception as error:
        error.add_note(f"handed {len(handed)} times")
        raise
    return handed


def handed(error: pytest.ExceptionInfo[Exception]) -> bool:
    return "handed 1 times" in error.value.__notes__


def test_an_accepted_mail_is_there_as_it_was_sent() -> None:
    with inbox() as server:
        assert send(server.url, body="first\n.\n..two\nlast") == ["handed"]
        (mail,) = server.mails
    assert mail["Message-ID"] == f"<{'f' * 32}@breakwater.example>"
    text = mail.get_body(("plain",))
    assert text is not None
    assert "first\n.\n..two\nlast" in text.get_content().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("rcpt", "data", "error", "sure"),
    [
        ("451 greylisted", "250 OK", Later, True),
        ("550 no such user", "250 OK", Refused, True),
        ("250 OK", "452 full", Later, True),
        ("250 OK", "554 spam", Refused, True),
        ("250 OK", "drop", InDoubt, False),
        ("250 OK", "lose", InDoubt, False),
        ("250 OK", "hang", InDoubt, False),
    ],
)
def test_what_a_server_says_and_does_not_say(
    rcpt: str, data: str, error: type[Exception], sure: bool
) -> None:
    with inbox() as server:
        server.rcpt, server.data = rcpt, data
        with pytest.raises(error) as raised:
            send(server.url)
        assert len(server.raw) == (data == "drop")
    assert handed(raised) == (not rcpt.startswith(("4", "5")))
    assert isinstance(raised.value, InDoubt) == (not sure)


def test_a_server_that_hangs_before_the_message_is_away() -> None:
    with inbox() as server:
        server.holds["RCPT"] = Held()
        with pytest.raises(Away) as raised:
            send(server.url, smtp_timeout_s=0.3)
        assert not handed(raised)
    with pytest.raises(Away):
        send(f"smtp://127.0.0.1:{free_port()}")


def test_a_conversation_that_has_no_end_is_cut() -> None:
    with inbox() as server:
        server.holds["RCPT"] = Held()
        with pytest.raises(Away):
            send(server.url, smtp_timeout_s=60.0, delivery_lease_s=0.5)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail")])
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "mail.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return file


def test_a_login_goes_over_starttls_alone(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    login = {"smtp_username": "breakwater", "smtp_password": "secret"}
    with inbox(tls=context) as server:
        secure = server.url.replace("smtp:", "smtp+starttls:")
        assert send(secure, smtp_ca_file=certificate, **login) == ["handed"]
        assert server.logins == [("breakwater", True)]
        with pytest.raises(Away, match="CERTIFICATE_VERIFY_FAILED"):
            send(secure, **login)
        with pytest.raises(Away, match="535"):
            send(secure, smtp_ca_file=certificate, smtp_username="breakwater", smtp_password="wrong")
        assert len(server.raw) == 1
        with pytest.raises(ValueError, match="in the clear"):
            send(server.url, **login)
    with inbox() as server, pytest.raises(Away, match="STARTTLS"):
        send(server.url.replace("smtp:", "smtp+starttls:"), smtp_ca_file=certificate)
