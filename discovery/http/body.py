"""Bodies that are sent once, piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

PIECE_BYTES = 64 * 1024


class BodyFailed(ValueError):
    """The caller's own body could not be sent as announced: its iterator raised, or gave more or less than its Content-Length."""


class OnceBody:
    """A body that can be read once, and remembers whether reading has begun: after that it cannot be sent again."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.begun = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.begun = True
        try:
            return next(self._chunks)
        except (StopIteration, GeneratorExit):
            raise
        except Exception as error:
            # As it is, an OSError of the caller's own source would look like one of the upstream's connection.
            raise BodyFailed(f"the request's body could not be read: {error}") from error
