"""An upstream of its own for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.scripted import Upstream, upstream


@pytest.fixture
def good() -> Iterator[Upstream]:
    with upstream() as server:
        yield server
