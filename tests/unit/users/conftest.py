from __future__ import annotations

import services.users
from services.users.store import Base
from tests.support.databases import migrated

tables, db = migrated(services.users, Base.metadata)
