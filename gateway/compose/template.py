"""Path templates: `/api/<user_id>/<product_id>` takes a path apart, `/api/users/<user_id>` puts one together.

A placeholder stands for a whole segment, or for a value in the query of a template that is filled. What it takes is
decoded and has to match its pattern; what it gives is encoded again, so that no value can leave its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote, unquote_to_bytes

MAX_VALUE_CHARS = 200
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_PLACEHOLDER = re.compile(r"<([^<>]*)>")
# RFC 3986 without the percent sign: a template is written as it is meant.
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@-]+")
_QUERY = re.compile(r"[A-Za-z0-9._~!$'()*+,;:@/?=&<>-]*")


def decoded(segment: str) -> str | None:
    """What a percent-encoded segment says, or None for one that no placeholder takes: not UTF-8, too long, `.` or `..`."""
    if len(segment) > 3 * MAX_VALUE_CHARS:
        return None
    if "%" in segment:
        try:
            segment = unquote_to_bytes(segment).decode()
        except UnicodeDecodeError:
            return None
    return segment if _holdable(segment) else None


def _holdable(value: str) -> bool:
    return 0 < len(value) <= MAX_VALUE_CHARS and value not in (".", "..") and value.isprintable()


def encoded(value: str) -> str:
    """A value as it stands in a path or query. Raises ValueError for one that cannot."""
    if not _holdable(value):
        raise ValueError("cannot stand in a path")
    return quote(value, safe="")


def names_in(template: str) -> tuple[str, ...]:
    """The placeholders of a template, in order. Raises ValueError."""
    names = tuple(_PLACEHOLDER.findall(template))
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"<{name}> is no placeholder: a-z, 0-9 and _, beginning with a letter")
    return names


def _segments(path: str) -> list[str]:
    """Checks a template's path. Raises ValueError."""
    if not path.startswith("/") or path == "/":
        raise ValueError("must start with / and name at least one segment")
    segments = path[1:].split("/")
    for segment in segments:
        if _PLACEHOLDER.fullmatch(segment):
            continue
        if not _SEGMENT.fullmatch(segment) or segment in (".", ".."):
            raise ValueError(
                f"{segment!r} is no segment: a placeholder stands for a whole one, nothing is encoded"
            )
    return segments


class RoutePath:
    """A template that takes paths apart; `patterns` says what each placeholder takes. Raises ValueError."""

    def __init__(self, template: str, patterns: Mapping[str, str]) -> None:
        self.template = template
        self.names = names_in(template)
        if len(set(self.names)) != len(self.names):
            raise ValueError("a placeholder stands in it twice")
        if set(self.names) != set(patterns):
            wrong = ", ".join(sorted(set(self.names) ^ set(patterns)))
            raise ValueError(f"placeholders and patterns do not agree on: {wrong}")
        self._patterns = tuple(_compiled(name, patterns[name]) for name in self.names)
        self._shape = re.compile(
            "".join(
                "/([^/]+)" if _PLACEHOLDER.fullmatch(segment) else "/" + re.escape(segment)
                for segment in _segments(template)
            )
        )
        self.key = _PLACEHOLDER.sub(lambda found: f"<{patterns[found[1]]}>", template)

    def match(self, path: str) -> dict[str, str] | None:
        """The decoded values of the placeholders in a percent-encoded path, or None when it is not this template's."""
        found = self._shape.fullmatch(path)
        if found is None:
            return None
        values = {}
        for name, pattern, segment in zip(self.names, self._patterns, found.groups(), strict=True):
            value = decoded(segment)
            if value is None or not pattern.fullmatch(value):
                return None
            values[name] = value
        return values


def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern of <{name}> is invalid: {error}") from None


class TargetPath:
    """A template that is filled: path, and perhaps a query. Raises ValueError."""

    def __init__(self, template: str) -> None:
        path, _, query = template.partition("?")
        _segments(path)
        if not _QUERY.fullmatch(query):
            raise ValueError("the query holds what would have to be encoded")
        self.template = template
        self.names = names_in(template)
        self._pieces = _PLACEHOLDER.split(template)

    def fill(self, values: Mapping[str, str]) -> str:
        """The request target. Raises ValueError for a value that cannot stand in it."""
        pieces = list(self._pieces)
        for index in range(1, len(pieces), 2):
            pieces[index] = encoded(values[pieces[index]])
        return "".join(pieces)
