"""From a stored entry, or an answer that has just come, to what the client gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime

from werkzeug.http import parse_etags, unquote_etag

from gateway.cache.entry import Entry
from gateway.cache.policy import State
from gateway.model import Answer, Headers

CHUNK_HEADERS = frozenset({"content-length", "content-type", "content-encoding", "content-language"})


def give(
    asked: Mapping[str, str], method: str, entry: Entry, state: State, age_s: float, stale_s: float = 0.0
) -> Answer:
    """A stored answer, or 304 for who has it already. `stale_s` is told of what is STALE."""
    own: Headers = [("Age", str(max(0, int(age_s)))), ("X-Cache", state)]
    if state == "STALE":
        own.append(("X-Stale-Age", str(max(0, int(stale_s)))))
    if entry.status == 200 and _has_it(asked, entry.headers):
        kept = [pair for pair in entry.headers if pair[0].lower() not in CHUNK_HEADERS]
        return Answer(304, [*kept, *own], b"", source="cache")
    headers = [*entry.headers, ("Content-Length", str(len(entry.body))), *own]
    return Answer(entry.status, headers, b"" if method == "HEAD" else entry.body, source="cache")


def passed_on(asked: Mapping[str, str], answer: Answer, state: State) -> Answer:
    """An answer that has just come, or 304 for who has it already: its conditions were not passed on."""
    headers = [pair for pair in answer.headers if pair[0].lower() not in ("x-cache", "x-stale-age")]
    headers.append(("X-Cache", state))
    if answer.status == 200 and _has_it(asked, headers):
        answer.close()
        headers = [pair for pair in headers if pair[0].lower() not in CHUNK_HEADERS]
        return replace(answer, status=304, headers=headers, body=b"")
    return replace(answer, headers=headers)


def _has_it(asked: Mapping[str, str], headers: Headers) -> bool:
    """Whether the request's conditions name this state. Ref: RFC 9110, section 13.2.2."""
    known = asked.get("if-none-match")
    if known is not None:
        tag = _first(headers, "etag")
        return tag is not None and parse_etags(known).contains_weak(unquote_etag(tag)[0])
    since = asked.get("if-modified-since")
    if since is None:
        return False
    changed = _first(headers, "last-modified")
    if changed is None:
        return False
    try:
        return parsedate_to_datetime(changed) <= parsedate_to_datetime(since)
    except (ValueError, TypeError, OverflowError):
        return False


def _first(headers: Headers, name: str) -> str | None:
    return next((value for key, value in headers if key.lower() == name), None)


class Rest:
    """A body of which the beginning has been read already."""

    __slots__ = ("_begun", "_body", "_chunks")

    def __init__(self, begun: list[bytes], body: Iterable[bytes], chunks: Iterator[bytes]) -> None:
        self._begun = begun
        self._body = body
        self._chunks = chunks

    def __iter__(self) -> Rest:
        return self

    def __next__(self) -> bytes:
        return self._begun.pop(0) if self._begun else next(self._chunks)

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


class Beside:
    """A body that is passed on as it comes, and given to `keep` when it has come whole, while `go_on` says so."""

    __slots__ = ("_body", "_chunks", "_go_on", "_keep", "_most", "_pieces")

    def __init__(
        self,
        body: bytes | Iterable[bytes],
        most_bytes: int,
        go_on: Callable[[], bool],
        keep: Callable[[bytes], object],
    ) -> None:
        self._body = body
        self._chunks = iter([body] if isinstance(body, bytes) else body)
        self._most = most_bytes
        self._go_on = go_on
        self._keep = keep
        self._pieces: list[bytes] | None = []

    def __iter__(self) -> Beside:
        return self

    def __next__(self) -> bytes:
        pieces = self._pieces
        try:
            chunk = next(self._chunks)
        except StopIteration:
            self._pieces = None
            if pieces is not None:
                self._keep(b"".join(pieces))
            raise
        if pieces is not None:
            pieces.append(chunk)
            self._most -= len(chunk)
            if self._most < 0 or not self._go_on():
                self._pieces = None
        return chunk

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


def read_whole(answer: Answer, most_bytes: int, go_on: Callable[[], bool]) -> bytes | None:
    """The body of an answer that tells its length, which holds it afterwards; None when it is longer, or `go_on` says no before
    its end: then the answer passes it on as it comes.

    Raises what reading raises.
    """
    if isinstance(answer.body, bytes):
        return answer.body if len(answer.body) <= most_bytes else None
    told = answer.header("content-length")
    if told is None or not told.isdigit() or int(told) > most_bytes:
        return None
    pieces: list[bytes] = []
    chunks = iter(answer.body)
    for chunk in chunks:
        pieces.append(chunk)
        if not go_on():
            answer.body = Rest(pieces, answer.body, chunks)
            return None
    answer.body = b"".join(pieces)
    return answer.body
