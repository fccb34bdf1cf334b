from __future__ import annotations

import pytest

import services.auth
from services.auth.store import Base
from tests.support.clock import ManualClock
from tests.support.databases import migrated

tables, db = migrated(services.auth, Base.metadata)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
