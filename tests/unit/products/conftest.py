from __future__ import annotations

import services.products
from services.products.store import Base
from tests.support.databases import migrated

tables, db = migrated(services.products, Base.metadata)
