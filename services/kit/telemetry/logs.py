"""Structured logs on standard error: one JSON object a line, with the request's ids on it.

Lines are written by one `os.write` each: no buffer and no lock that a fork could leave held, and lines of several
processes on one pipe do not mix (up to PIPE_BUF, 4,096 bytes).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any

import structlog
from pydantic_core import to_json
from structlog.typing import Processor

from services.kit.web import context

STDERR = 2
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class RawWriter:
    """structlog's output: whole lines to a file descriptor."""

    def msg(self, line: bytes | str) -> None:
        data = line if isinstance(line, bytes) else line.encode()
        try:
            os.write(STDERR, data + b"\n")
        except OSError:
            # The pipe is closed: a service does not die of that.
            return

    log = debug = info = warning = error = critical = exception = msg


def adding(fields: dict[str, str]) -> Processor:
    """A processor that puts fixed fields on every line, and the current request's ids on one that has none."""

    def add(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        for name, value in fields.items():
            event.setdefault(name, value)
        caller = context.peek()
        if caller is not None and "request_id" not in event:
            event["request_id"] = caller.request_id
            event["trace_id"] = context.trace_id(caller.traceparent)
        return event

    return add


def as_json(_: Any, __: str, event: MutableMapping[str, Any]) -> bytes:
    """Render a line; what JSON does not know becomes its repr."""
    return to_json(event, fallback=repr, inf_nan_mode="constants")


class StdlibHandler(logging.Handler):
    """Carries the lines of libraries (gunicorn, SQLAlchemy, urllib3) over to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        level = logging.getLevelName(record.levelno).lower()
        method = level if level in LEVELS else "error"
        try:
            logger = structlog.get_logger(record.name)
            getattr(logger, method)(record.getMessage(), exc_info=record.exc_info or None)
        except Exception:
            self.handleError(record)


class RequestLines:
    """The line of every answered request, written past structlog's processors: it is most of what a service logs."""

    def __init__(self) -> None:
        self._constants: dict[str, str] = {}
        self._threshold = LEVELS["info"]
        self._plain = False
        self._writer = RawWriter()

    def configure(self, constants: dict[str, str], threshold: int, *, plain: bool) -> None:
        """`plain`: through structlog after all, for a terminal."""
        self._constants, self._threshold, self._plain = constants, threshold, plain

    def write(self, level: str, caller: context.Caller, fields: dict[str, Any]) -> None:
        """One line, if its level (`debug`, `info`) is wanted."""
        if LEVELS[level] < self._threshold:
            return
        if self._plain:
            getattr(structlog.get_logger("services.kit.access"), level)("request", **fields)
            return
        line = {
            "event": "request",
            **fields,
            **self._constants,
            "request_id": caller.request_id,
            "trace_id": context.trace_id(caller.traceparent),
            "level": level,
            "timestamp": datetime.now(UTC).isoformat(timespec="microseconds")[:-6] + "Z",
        }
        self._writer.info(to_json(line))


request_lines = RequestLines()


def configure(service: str, level: str = "info", style: str = "json", *, instance_id: str = "") -> None:
    """Set up structlog and the standard library's logging for this process. May be called again."""
    constants = {"service": service, **({"instance_id": instance_id} if instance_id else {})}
    request_lines.configure(constants, LEVELS[level], plain=style == "console")
    shared: list[Any] = [
        adding(constants),
        structlog.stdlib.add_log_level if style == "console" else structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if style == "console":
        tail: list[Any] = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        tail = [structlog.processors.format_exc_info, as_json]
    structlog.configure(
        processors=[*shared, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: RawWriter(),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [StdlibHandler()]
    root.setLevel(max(LEVELS[level], logging.INFO))
    for noisy in ("urllib3", "alembic", "sqlalchemy"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
