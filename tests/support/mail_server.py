"""A real SMTP server (aiosmtpd) on a free loopback port that keeps what it accepts, and misbehaves where a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

OK = "250 OK"


class Held:
    """A point at which the server waits: `reached` tells that it does, `release` ends it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._released = threading.Event()

    def release(self) -> None:
        self._released.set()

    async def wait(self) -> None:
        self.reached.set()
        while not self._released.is_set():
            await asyncio.sleep(0.01)


@dataclass
class Inbox:
    """What came, and what to do with the next ones.

    `data` is for a message that is whole: an answer, "hang", "drop" (kept, and the connection closed without an answer) or
    "lose" (the same, and not kept). `rcpt` is the answer to a recipient. `holds` are points at which the server waits: "MAIL",
    "RCPT", "DATA" (kept, and not answered yet).
    """

    port: int = 0
    data: str = OK
    rcpt: str = OK
    holds: dict[str, Held] = field(default_factory=dict)
    raw: list[bytes] = field(default_factory=list)
    attempts: int = 0
    logins: list[tuple[str, bool]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    @property
    def mails(self) -> list[EmailMessage]:
        return [message_from_bytes(one, policy=default) for one in list(self.raw)]

    def to(self, address: str) -> list[EmailMessage]:
        return [mail for mail in self.mails if address in str(mail["To"])]

    async def _at(self, point: str) -> None:
        if point in self.holds:
            await self.holds[point].wait()

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: Any
    ) -> str:  # noqa: N802
        self.attempts += 1
        await self._at("MAIL")
        envelope.mail_from = address
        return OK

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: Any
    ) -> str:  # noqa: N802
        await self._at("RCPT")
        if self.rcpt == OK:
            envelope.rcpt_tos.append(address)
        return self.rcpt

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        answer = self.data
        if answer in (OK, "drop"):
            assert isinstance(envelope.content, bytes)
            self.raw.append(envelope.content)
        await self._at("DATA")
        if answer == "hang":
            await asyncio.sleep(60)
        if answer in ("drop", "lose"):
            assert server.transport is not None
            server.transport.close()
        return answer if answer[0].isdigit() else OK

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        secure = session.ssl is not None
        self.logins.append((data.login.decode(), secure))
        return AuthResult(success=data.password == b"secret" and secure, handled=False)


@contextlib.contextmanager
def inbox(*, tls: ssl.SSLContext | None = None) -> Iterator[Inbox]:
    """A server; with `tls` it offers STARTTLS, and wants a login under it (any name, password `secret`)."""
    kept = Inbox()
    options: dict[str, Any] = {"hostname": "127.0.0.1", "port": 0, "ready_timeout": 20}
    if tls is not None:
        options |= {"tls_context": tls, "authenticator": kept.authenticate, "auth_required": True}
    # The port is chosen by the system, where aiosmtpd's own start would ask for the one that it was given.
    controller = _AnyPort(kept, **options)
    controller.start()
    assert controller.server is not None
    kept.port = controller.server.sockets[0].getsockname()[1]
    try:
        yield kept
    finally:
        for held in kept.holds.values():
            held.release()
        controller.stop()


class _AnyPort(Controller):
    def _trigger_server(self) -> None:
        """A connection to see that it serves: to the port that it has."""
        assert self.server is not None
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()
