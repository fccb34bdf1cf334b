from __future__ import annotations

import services.notifications
from services.notifications.tables import Base
from tests.support.databases import migrated

tables, db = migrated(services.notifications, Base.metadata)
