from __future__ import annotations

import services.analytics
from services.analytics.store import Base
from tests.support.databases import migrated

tables, db = migrated(services.analytics, Base.metadata)
