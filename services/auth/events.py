"""What auth tells other services."""

from __future__ import annotations

from datetime import datetime

from services.kit.events.event import Event


class UserCreated(Event, type="user.created.v1", producer="auth", subject="userId"):
    """An account has been opened: it can log in, and users knows it."""

    userId: str  # noqa: N815 - the wire's spelling
    email: str
    firstName: str  # noqa: N815
    lastName: str  # noqa: N815
    createdAt: datetime  # noqa: N815
