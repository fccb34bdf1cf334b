"""The shape of events: CloudEvents 1.0 in JSON, structured mode. Ref: https://github.com/cloudevents/spec (v1.0.2)."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from services.kit.text import iso, storable

SPEC_VERSION = "1.0"
MAX_BYTES = 256 * 1024
_SOURCE = "/services/"
_TYPE = re.compile(r"[a-z]+(?:\.[a-z]+)+\.v[1-9][0-9]*")
_TEXTS = ("id", "type", "source", "subject", "time")
# What the tables of events take.
MAX_ID_CHARS = 64
MAX_SUBJECT_CHARS = 128


class Event(BaseModel):
    """The data of one type of event. Fields may be added to a version; what changes otherwise is a new one.

    class PostPublished(Event, type="post.published.v1", producer="posts", subject="postId"):
        postId: str
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    # In capitals, so that a field may have any name.
    TYPE: ClassVar[str]
    PRODUCER: ClassVar[str]
    SUBJECT: ClassVar[str]

    def __init_subclass__(cls, **_: Any) -> None:
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, **given: Any) -> None:
        super().__pydantic_init_subclass__()
        try:
            cls.TYPE, cls.PRODUCER, cls.SUBJECT = (given[key] for key in ("type", "producer", "subject"))
        except KeyError as error:
            raise TypeError(f"{cls.__name__} does not say its {error.args[0]}") from None
        if not _TYPE.fullmatch(cls.TYPE):
            raise TypeError(f"{cls.__name__}: {cls.TYPE!r} is not a type such as post.published.v1")
        if cls.SUBJECT not in cls.model_fields:
            raise TypeError(f"{cls.__name__} has no field {cls.SUBJECT!r} to be its subject")


def subject_of(event: Event) -> str:
    """What the event is about: those of one subject come in order."""
    return str(getattr(event, event.SUBJECT))


@dataclass(frozen=True, slots=True)
class Envelope:
    """One event with its attributes. `time` is ISO 8601 in UTC. Raises ValueError for an id or a subject that no table takes."""

    id: str
    type: str
    producer: str
    subject: str
    time: str
    data: dict[str, Any]
    traceparent: str = ""

    def __post_init__(self) -> None:
        if not 0 < len(self.id) <= MAX_ID_CHARS or not storable(self.id):
            raise ValueError(f"an id of 1 to {MAX_ID_CHARS} characters is needed")
        subject = f"{self.producer}{self.subject}"
        if not self.subject or len(subject) > MAX_SUBJECT_CHARS or not storable(subject):
            raise ValueError(
                f"a subject is needed, with its producer of at most {MAX_SUBJECT_CHARS} characters"
            )

    def to_json(self) -> str:
        attributes = {
            "specversion": SPEC_VERSION,
            "id": self.id,
            "type": self.type,
            "source": _SOURCE + self.producer,
            "subject": self.subject,
            "time": self.time,
            "datacontenttype": "application/json",
            "data": self.data,
        }
        if self.traceparent:
            attributes["traceparent"] = self.traceparent
        return json.dumps(attributes, separators=(",", ":"))


def wrap(event: Event, now_us: int, traceparent: str = "") -> Envelope:
    """A new event, which happened at `now_us` (Unix microseconds)."""
    return Envelope(
        new_id(now_us),
        event.TYPE,
        event.PRODUCER,
        subject_of(event),
        iso(now_us),
        event.model_dump(mode="json"),
        traceparent,
    )


def read(text: str | bytes) -> Envelope:
    """What came from a broker. Raises ValueError for what is no event of ours, is not UTF-8, or nests without end."""
    found = from_json(text, allow_inf_nan=False)
    if not isinstance(found, dict) or found.get("specversion") != SPEC_VERSION:
        raise ValueError("not a CloudEvent of version 1.0")
    values = [str(found[name]) for name in _TEXTS if isinstance(found.get(name), str) and found[name]]
    data, trace = found.get("data"), found.get("traceparent", "")
    if len(values) != len(_TEXTS) or not isinstance(data, dict):
        raise ValueError(f"a CloudEvent without one of {', '.join(_TEXTS)}, data")
    id_, type_, source, subject, when = values
    if not source.startswith(_SOURCE):
        raise ValueError(f"its source {source!r} is no service")
    return Envelope(
        id_, type_, source.removeprefix(_SOURCE), subject, when, data, trace if isinstance(trace, str) else ""
    )


def new_id(now_us: int | None = None) -> str:
    """A UUID of version 7: 48 bits of Unix milliseconds, then chance. Ref: RFC 9562, 5.7."""
    millis = (time.time_ns() // 1000 if now_us is None else now_us) // 1000
    number = millis << 80 | int.from_bytes(os.urandom(10))
    number = number & ~(0xF << 76) | 7 << 76
    number = number & ~(0x3 << 62) | 2 << 62
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
