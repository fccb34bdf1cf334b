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
    shown: list[str]
    createdAt: datetime
    updatedAt: datetime


class ProfileShown(BaseModel):
    """What others see: what the owner does not show is not there."""

    id: str
    username: str
    firstName: str = ""
    lastName: str = ""
    postCount: int = 0
    createdAt: datetime | None = None


class NamedAnswer(BaseModel):
    """Username → id."""

    data: dict[str, str]


UserAnswer, UsersAnswer, ProfileAnswer = One[UserShown], Many[UserShown], One[ProfileShown]
