from __future__ import annotations

import services.posts
from services.posts.store import Base
from tests.support.databases import migrated

tables, db = migrated(services.posts, Base.metadata)
