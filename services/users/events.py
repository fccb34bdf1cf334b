"""What users tells other services."""

from __future__ import annotations

from datetime import datetime

from services.kit.events.event import Event


class UserDeleted(Event, type="user.deleted.v1", producer="users", subject="userId"):
    """An account is gone, with its profile; what others keep of it has to follow."""

    userId: str  # noqa: N815 - the wire's spelling
    deletedAt: datetime  # noqa: N815
