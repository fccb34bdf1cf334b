"""users' tables on a real SQLite file, as its migrations make them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

import services.users
from services.kit.db import Database
from services.users.models import Base

MIGRATIONS = Path(services.users.__file__).parent / "migrations"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(
        make_url(f"sqlite:///{tmp_path}/users.db"),
        metadata=Base.metadata,
        migrations=MIGRATIONS,
        timeout_s=10,
    )
    database.migrate()
    yield database
    database.dispose()
