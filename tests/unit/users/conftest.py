"""users's tables on a real SQLite file and a real PostgreSQL, as its migrations make them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import services.users
from services.kit.db.session import Database
from services.users.store import Base
from tests.support.databases import KINDS, database

MIGRATIONS = Path(services.users.__file__).parent / "migrations"


@pytest.fixture(params=KINDS)
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with database(request, tmp_path, Base.metadata, MIGRATIONS) as made:
        yield made
