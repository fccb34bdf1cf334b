"""auth's tables on a real SQLite file and a real PostgreSQL, as its migrations make them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import services.auth
from services.auth.models import Base
from services.kit.db.session import Database
from tests.support.clock import ManualClock
from tests.support.databases import KINDS, database

MIGRATIONS = Path(services.auth.__file__).parent / "migrations"


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with database(request, tmp_path, Base.metadata, MIGRATIONS) as made:
        yield made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
