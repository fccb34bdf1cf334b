"""The stack's mail server, as a process of its own, and what `make mail` shows of it."""

from __future__ import annotations

import smtplib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path

import pytest

from stack.mails import harmless, shown
from stack.servers import mail_server
from stack.servers.mail_server import Keeper, kept
from tests.support.eventually import eventually
from tests.support.servers import Process, accepts, free_port


@contextmanager
def server(folder: Path) -> Iterator[int]:
    port = free_port()
    env = {"MAIL_DIR": str(folder / "mail"), "MAIL_PORT": str(port), "PYTHONPATH": str(Path.cwd())}
    one = Process([sys.executable, "-m", "stack.servers.mail_server"], folder / "mail.log", env=env)
    one.start()
    try:
        eventually(lambda: accepts(port), 20)
        yield port
        one.stop(10)
        assert isinstance(one.popen, subprocess.Popen)
        assert one.popen.returncode == 0
    finally:
        one.stop()


def mail(subject: str, text: str = "Hello.") -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.com", "b@example.com", subject
    message.set_content(text)
    return message


def test_mails_are_kept_and_the_last_ones_shown(tmp_path: Path) -> None:
    with server(tmp_path) as port, smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        for number in range(3):
            client.send_message(mail(f"number {number}", "Zoë\x1b]0;title\x07"))
        with pytest.raises(smtplib.SMTPSenderRefused):
            client.send_message(mail("large", "x" * (mail_server.MAX_MAIL_BYTES + 1)))
    first, second = shown(tmp_path / "mail", 2)
    assert "Subject: number 1" in first
    assert "Subject: number 2\n" in second
    assert "Zoë\\u001b]0;title\\u0007" in second
    assert [path.stat().st_mode & 0o777 for path in kept(tmp_path / "mail")] == [0o600] * 3
    assert list(shown(tmp_path / "nowhere", 5)) == []


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_server, "MAX_KEPT", 3)
    monkeypatch.setattr(mail_server, "MAX_KEPT_BYTES", 100)
    (tmp_path / "left.part").touch()
    keeper = Keeper(tmp_path)
    for number in range(5):
        keeper.keep(b"%d" % number)
    assert [path.read_bytes() for path in kept(tmp_path)] == [b"2", b"3", b"4"]
    Keeper(tmp_path).keep(b"x" * 99)
    assert [path.read_bytes()[:1] for path in kept(tmp_path)] == [b"4", b"x"]
    assert not list(tmp_path.glob("*.part"))


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert harmless("a\x1b[2J\u202eb\u2028\tc\x9b") == "a\\u001b[2J\\u202eb\\u2028\tc\\u009b"
