"""Header fields of HTTP/1.1: what may be sent, and what has come."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping

# RFC 9110, section 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
# Section 5.5: a CR, LF or NUL would begin another field, or another request; the other controls mean nothing good.
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

RawPairs = list[tuple[bytes, bytes]]


@functools.lru_cache(maxsize=512)
def lower_name(name: str) -> str:
    """A field name in lower case. Raises ValueError for an invalid one."""
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"no header name: {name[:80]!r}")
    return name.lower()


def field_line(name: str, value: str) -> str:
    """The line that sends a field whose name has been through `lower_name`. Raises ValueError for a value that cannot be sent."""
    if not value.isprintable() and _CONTROLS.search(value):
        raise ValueError(f"header {name}: control characters in its value")
    return f"{name}: {value}\r\n"


class Headers(Mapping[str, str]):
    """The fields of an answer in their order, repeated ones kept apart. Names ignore case; values are Latin-1.

    A mapping joins repeated fields by commas (RFC 9110, section 5.2), which suits all but Set-Cookie: see `items`.
    """

    __slots__ = ("_pairs", "_raw", "_values")

    def __init__(self, raw: RawPairs) -> None:
        self._raw = raw
        self._pairs: list[tuple[str, str]] | None = None
        self._values: dict[str, str] | None = None

    def items(self) -> list[tuple[str, str]]:  # type: ignore[override]
        """(name as it came, value), in their order: repeated fields come repeatedly."""
        if self._pairs is None:
            self._pairs = [
                (name.decode("latin-1"), value.decode("latin-1").strip(" \t")) for name, value in self._raw
            ]
        return self._pairs

    @property
    def _joined(self) -> dict[str, str]:
        if self._values is None:
            values: dict[str, str] = {}
            for name, value in self.items():
                key = name.lower()
                values[key] = f"{values[key]}, {value}" if key in values else value
            self._values = values
        return self._values

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        return self._joined.get(name.lower(), default)

    def __getitem__(self, name: str) -> str:
        return self._joined[name.lower()]

    def __iter__(self) -> Iterator[str]:
        """The names in lower case, each once."""
        return iter(self._joined)

    def __len__(self) -> int:
        return len(self._joined)

    def __repr__(self) -> str:
        return f"Headers({self.items()!r})"
