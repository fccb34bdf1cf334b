"""Files that are either the old one or the new one, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_beside(path: Path, data: bytes, mode: int = 0o644) -> Iterator[Path]:
    """A file with this content in the folder of `path`, safe on disk, for `put_in_place`; removed in the end where it still is.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def put_in_place(new: Path, path: Path) -> None:
    """Rename, and make the rename survive a loss of power. Raises OSError."""
    new.replace(path)
    handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file's content. Raises OSError."""
    with written_beside(path, data, mode) as new:
        put_in_place(new, path)


def write_if_changed(path: Path, data: bytes) -> None:
    """As `write_atomically`, unless the file holds this already. Raises OSError."""
    if not path.exists() or path.read_bytes() != data:
        write_atomically(path, data)
