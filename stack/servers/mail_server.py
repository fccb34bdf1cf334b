"""A small mail server for one machine: takes every mail, sends none on, and keeps the last ones as files. `python -m stack.servers.mail_server`.

A mail that it has accepted is in its folder, whole, before the sender is told so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import structlog
from aiosmtpd.smtp import SMTP, Envelope, Session

log = structlog.get_logger(__name__)

MAX_MAIL_BYTES = 1024 * 1024
MAX_KEPT = 2000
MAX_KEPT_BYTES = 64 * 1024 * 1024
# After a sender fell silent.
TIMEOUT_S = 60.0
SUFFIX = ".eml"


class Keeper:
    """Keeps mails in a folder, the newest `MAX_KEPT` of them, and `MAX_KEPT_BYTES` in all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob("*.part"):
            left.unlink()
        self._sizes = {path: path.stat().st_size for path in kept(folder)}
        self._number = 0

    def keep(self, content: bytes) -> None:
        """Raises OSError."""
        self._number += 1
        # Names sort by time.
        name = f"{time.time_ns():020d}-{os.getpid()}-{self._number}"
        part, path = self._folder / f"{name}.part", self._folder / f"{name}{SUFFIX}"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(content)
        part.rename(path)
        self._sizes[path] = len(content)
        while len(self._sizes) > MAX_KEPT or sum(self._sizes.values()) > MAX_KEPT_BYTES:
            oldest = next(iter(self._sizes))
            del self._sizes[oldest]
            oldest.unlink(missing_ok=True)

    async def handle_DATA(self, _: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        if not isinstance(envelope.content, bytes):
            return "554 there is no message"
        try:
            self.keep(envelope.content)
        except OSError as error:
            log.error("mail not kept", reason=str(error))
            return "452 cannot be kept now"
        return "250 kept"


def kept(folder: Path) -> Iterator[Path]:
    """The mails in the folder, the oldest first."""
    yield from sorted(folder.glob(f"*{SUFFIX}"))


async def serve(folder: Path, host: str, port: int) -> None:
    """Until SIGTERM or SIGINT. Raises OSError for a port that is taken."""
    loop = asyncio.get_running_loop()
    keeper = Keeper(folder)

    def conversation() -> SMTP:
        return SMTP(
            keeper, hostname="mail.localhost", data_size_limit=MAX_MAIL_BYTES, timeout=TIMEOUT_S, loop=loop
        )

    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = await loop.create_server(conversation, host, port)
    log.info("keeping mails", folder=str(folder), port=port)
    await ended.wait()
    # Conversations that are under way end with the program.
    server.close()


def main() -> None:
    """`MAIL_DIR`, `MAIL_HOST` (loopback by default) and `MAIL_PORT` say where."""
    environment = os.environ
    folder, port = Path(environment["MAIL_DIR"]), int(environment["MAIL_PORT"])
    asyncio.run(serve(folder, environment.get("MAIL_HOST", "127.0.0.1"), port))


if __name__ == "__main__":
    main()
