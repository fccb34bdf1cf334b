"""Bodies on their way to the client, of which the cache keeps a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gateway.model import Answer


class Copied:
    """A body that is passed on as it comes, and given to `keep` when it has come whole, while `go_on` allows it.

    `begun` is what has been read of it already. Closing it closes the body.
    """

    __slots__ = ("_begun", "_body", "_chunks", "_go_on", "_keep", "_most", "_pieces")

    def __init__(
        self,
        body: bytes | Iterable[bytes],
        most_bytes: int,
        go_on: Callable[[], bool],
        keep: Callable[[bytes], object],
    ) -> None:
        self._body = body
        self._chunks = iter([body] if isinstance(body, bytes) else body)
        self._begun: list[bytes] = []
        self._most = most_bytes
        self._go_on = go_on
        self._keep = keep
        self._pieces: list[bytes] | None = []

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._begun.pop(0) if self._begun else self._read()

    def _read(self) -> bytes:
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

    def read_ahead(self) -> bytes | None:
        """All of it; None when it stops being kept: what has been read comes first then."""
        pieces = self._pieces
        assert pieces is not None
        while self._pieces is not None:
            try:
                self._read()
            except StopIteration:
                return b"".join(pieces)
        self._begun = pieces
        return None

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            close()


def read_whole(answer: Answer, most_bytes: int, go_on: Callable[[], bool]) -> bytes | None:
    """The body of an answer that says its length, which holds it afterwards; None when it is longer, or `go_on` says no before
    its end: then the answer passes it on as it comes.

    Raises what reading raises.
    """
    if isinstance(answer.body, bytes):
        return answer.body if len(answer.body) <= most_bytes else None
    length = answer.header("content-length")
    if length is None or not length.isdigit() or int(length) > most_bytes:
        return None
    copied = Copied(answer.body, most_bytes, go_on, keep=lambda _: None)
    whole = copied.read_ahead()
    answer.body = copied if whole is None else whole
    return whole
