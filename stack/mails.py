"""`make mail`: the last mails that the stack's own server has kept, as text that is safe to show in a terminal."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

from stack.servers.mail_server import kept

SHOWN_HEADERS = ("From", "To", "Subject", "Date", "Message-ID")
MAX_TEXT = 4000


def shown(folder: Path, number: int) -> Iterator[str]:
    """The last `number` mails, the newest last: some headers, and the text."""
    for path in list(kept(folder))[-number:] if number > 0 else []:
        message = message_from_bytes(path.read_bytes(), policy=default)
        yield "\n".join(
            [*(f"{name}: {harmless(str(message[name] or ''))}" for name in SHOWN_HEADERS), "", _text(message)]
        )


def _text(message: EmailMessage) -> str:
    part = message.get_body(("plain", "html"))
    try:
        text = str(part.get_content()) if part is not None else ""
    except (LookupError, ValueError):
        return "(in an unknown encoding)"
    return "\n".join(harmless(line) for line in text[:MAX_TEXT].splitlines())


def harmless(line: str) -> str:
    """The line with what a terminal would obey, or would show otherwise than it is, spelled out."""
    bad = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return "".join(c if unicodedata.category(c) not in bad or c == "\t" else f"\\u{ord(c):04x}" for c in line)


def main() -> None:
    """In the container of the mail server: the last five, or as many as the argument says."""
    for one in shown(Path(os.environ["MAIL_DIR"]), int((sys.argv + ["5"])[1])):
        print("-" * 80, one, sep="\n")


if __name__ == "__main__":
    main()
