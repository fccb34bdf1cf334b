"""A service's tables with an outbox and idempotency keys."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase

from services.kit.db.idempotency import Keys
from services.kit.db.outbox import Owing


class Base(DeclarativeBase):
    pass


class OutboxRow(Owing, Base):
    pass


class KeyRow(Keys, Base):
    pass
