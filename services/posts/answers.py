"""What posts answers, for its OpenAPI document."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from services.kit.web.resources import Many, One


class PostShown(BaseModel):
    id: str
    authorId: str
    title: str
    content: str
    tags: list[str]
    publishedAt: datetime | None
    createdAt: datetime
    updatedAt: datetime
    version: int


class CommentShown(BaseModel):
    id: str
    postId: str
    parentId: str | None
    authorId: str
    content: str
    createdAt: datetime
    updatedAt: datetime


class TagShown(BaseModel):
    """A tag in use, and how many posts have it."""

    tag: str
    count: int


class LikesShown(BaseModel):
    """How many like a post; `liked` says whether the caller does, where one is known."""

    count: int
    liked: bool


class Tags(BaseModel):
    data: list[TagShown]


PostAnswer, PostsAnswer = One[PostShown], Many[PostShown]
CommentAnswer, CommentsAnswer = One[CommentShown], Many[CommentShown]
LikesAnswer = One[LikesShown]
