"""Mail: how a notification reads as one, and how it is handed to a server, at most once.

SMTP has a message accepted with the answer to the last line, a dot. All else is sent first; then the delivery is marked, and then the
dot goes out. What ends before the dot was never delivered and is sent again. What ends between the dot and its answer may have been:
it is marked as unsure, and not sent again by itself. Ref: RFC 5321, 4.1.1.4 and 4.5.3.2.6; RFC 1047.
"""

from __future__ import annotations

import contextlib
import re
import smtplib
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from services.kit.settings import secret
from services.notifications.delivery.courier import Away, InDoubt, Later, Parcel, Refused
from services.notifications.delivery.wire import cut_after
from services.notifications.domain import Channel, Notification, Person, one_line
from services.notifications.settings import SMTP_PORTS, NotificationSettings, sender_of

TEMPLATES = Path(__file__).parent / "templates"
# Every server takes seven bits.
POLICY = SMTP_POLICY.clone(cte_type="7bit")
MAX_SHOWN_NAME = 80


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        # By the name: what goes into the plain text stays as it is.
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def compose(notification: Notification, person: Person, sender: Address) -> EmailMessage:
    """The mail, in text and HTML. Its Message-ID and its date are the same each time. Raises Refused for a bad address."""
    email = person.email or ""
    name = one_line(f"{person.first_name} {person.last_name}", MAX_SHOWN_NAME)
    message = EmailMessage(policy=POLICY)
    try:
        if not email or not email.isascii():
            raise ValueError("empty, or not ASCII")
        message["To"] = Address(name, addr_spec=email)
    except (ValueError, IndexError, MessageError) as error:
        raise Refused(f"no address that mail can be sent to: {error}") from None
    message["From"] = sender
    message["Subject"] = one_line(notification.title)
    message["Date"] = datetime.fromtimestamp(notification.created_us / 1e6, UTC)
    message["Message-ID"] = message_id(notification, sender)
    message["Auto-Submitted"] = "auto-generated"
    values = {"notification": notification, "name": one_line(person.first_name, MAX_SHOWN_NAME)}
    kind = "welcome" if notification.kind == "welcome" else "activity"
    text, html = (_templates().get_template(f"{kind}.{form}.j2").render(values) for form in ("txt", "html"))
    message.set_content(text)
    message.add_alternative(html, subtype="html")
    return message


def message_id(notification: Notification, sender: Address) -> str:
    return f"<{notification.id}@{sender.domain}>"


class Mail:
    """Hands mails to the server at `SMTP_URL`, one connection each."""

    channel: Channel = "email"

    def __init__(self, settings: NotificationSettings) -> None:
        parts = urlsplit(settings.smtp_url or "")
        self._scheme, self._host = parts.scheme, parts.hostname or ""
        self._port = parts.port or SMTP_PORTS[parts.scheme]
        self._settings = settings
        self._sender = sender_of(settings.mail_from)

    def send(self, parcel: Parcel, hand_over: Callable[[], None]) -> None:
        """See `Carrier`."""
        message = compose(parcel.notification, parcel.person, self._sender)
        with self._connection() as server:
            with _refusals(Away):
                self._greet(server)
            with _refusals(Later):
                _announce(server, self._sender.addr_spec, parcel.person.email or "")
                server.send(_stuffed(message.as_bytes()))
            hand_over()
            code, text = _finish(server, self._settings.smtp_answer_timeout_s)
            if code >= 300:
                raise (Later if code < 500 else Refused)(_said(code, text))
            with contextlib.suppress(smtplib.SMTPException, OSError):
                server.quit()

    @contextlib.contextmanager
    def _connection(self) -> Iterator[smtplib.SMTP]:
        # Else smtplib asks the resolver what this machine is called.
        name, timeout_s = self._sender.domain, self._settings.smtp_timeout_s
        with _refusals(Away):
            if self._scheme == "smtps":
                server: smtplib.SMTP = smtplib.SMTP_SSL(
                    self._host, self._port, name, timeout=timeout_s, context=self._tls()
                )
            else:
                server = smtplib.SMTP(self._host, self._port, name, timeout=timeout_s)
        try:
            with cut_after(self._settings.delivery_lease_s, lambda: server.sock):
                yield server
        finally:
            server.close()

    def _greet(self, server: smtplib.SMTP) -> None:
        if self._scheme == "smtp+starttls":
            server.starttls(context=self._tls())
        password = secret(self._settings.smtp_password)
        if self._settings.smtp_username and password:
            server.login(self._settings.smtp_username, password)
        server.ehlo_or_helo_if_needed()

    def _tls(self) -> ssl.SSLContext:
        ca_file = self._settings.smtp_ca_file
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)


def _announce(server: smtplib.SMTP, sender: str, recipient: str) -> None:
    """Up to the point where the server waits for the message."""
    for expected, (code, text) in (
        (250, server.mail(sender)),
        (250, server.rcpt(recipient)),
        (354, server.docmd("DATA")),
    ):
        if code != expected and not (expected == 250 and code in (251, 252)):
            raise smtplib.SMTPResponseException(code, text)


def _stuffed(message: bytes) -> bytes:
    """The message as it goes over the wire, without the dot that ends it."""
    lines = re.sub(rb"(?m)^\.", b"..", message)
    return lines if lines.endswith(b"\r\n") else lines + b"\r\n"


def _finish(server: smtplib.SMTP, timeout_s: float) -> tuple[int, bytes]:
    """Send the dot, and give the answer to it. Raises InDoubt."""
    try:
        if server.sock is not None:
            server.sock.settimeout(timeout_s)
        server.send(b".\r\n")
        return server.getreply()
    except (smtplib.SMTPException, OSError) as error:
        raise InDoubt(f"no answer to the message: {type(error).__name__}") from None


@contextlib.contextmanager
def _refusals(temporary: type[Later]) -> Iterator[None]:
    """What goes wrong before the message is handed over. `temporary` is what an answer that is no 5xx means here."""
    try:
        yield
    except smtplib.SMTPResponseException as error:
        said = _said(error.smtp_code, error.smtp_error)
        # Of a greeting or a login, a 5xx is about this service, not about the mail.
        if error.smtp_code >= 500 and temporary is not Away:
            raise Refused(said) from None
        raise temporary(said) from None
    except (smtplib.SMTPException, OSError) as error:
        raise Away(f"{type(error).__name__}: {error}") from None


def _said(code: int, text: bytes | str) -> str:
    words = text.decode(errors="replace") if isinstance(text, bytes) else text
    return one_line(f"{code} {words}")
