"""What users answers, for its OpenAPI document."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from services.kit.web.resources import Many, One


class UserShown(BaseModel):
    id: str
    email: str
    username: str
    firstName: str
    lastName: str
    postCount: int
    createdAt: datetime
    updatedAt: datetime


class Applied(BaseModel):
    """False for a message that came after a later one."""

    applied: bool


UserAnswer, UsersAnswer, AppliedAnswer = One[UserShown], Many[UserShown], One[Applied]
