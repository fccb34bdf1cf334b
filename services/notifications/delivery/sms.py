"""Text messages. Which service sends them differs from country to country, so none is built in: the built-in sender writes to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from services.kit.text import now_us
from services.notifications.delivery.courier import Later, Parcel
from services.notifications.domain import Channel, one_line

# What fits into two messages of GSM.
MAX_CHARS = 300
MAX_FILE_BYTES = 1024 * 1024


class Sender(Protocol):
    """A service that sends text messages. Raises Undelivered (`courier`)."""

    def __call__(self, number: str, text: str) -> None: ...


class FileSink:
    """Writes each message as a line of JSON, and says in it that nothing was sent. Past 1 MiB the file begins anew, and one is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, number: str, text: str) -> None:
        line = {"to": number, "text": text, "at_us": now_us(), "note": "written to this file, and not sent"}
        try:
            if self._path.exists() and self._path.stat().st_size > MAX_FILE_BYTES:
                self._path.replace(self._path.with_suffix(".old"))
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(file, "w", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
        except OSError as error:
            raise Later(f"cannot be written: {error.strerror}") from None


class Sms:
    """See `Carrier`. What a sender took before this instance was killed may be sent twice: few of them know what they have."""

    channel: Channel = "sms"

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def send(self, parcel: Parcel, hand_over: Callable[[], None]) -> None:
        told = parcel.notification
        text = told.title if told.kind == "welcome" else f"{told.title}: {told.body}"
        self._sender(parcel.person.phone or "", one_line(text, MAX_CHARS))
