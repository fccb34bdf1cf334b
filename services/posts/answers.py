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
    createdAt: datetime
    updatedAt: datetime
    version: int


class CommentShown(BaseModel):
    id: str
    postId: str
    authorId: str
    content: str
    createdAt: datetime
    updatedAt: datetime


class TagShown(BaseModel):
    """A tag in use, and how many posts have it."""

    tag: str
    count: int


class Tags(BaseModel):
    data: list[TagShown]


PostAnswer, PostsAnswer = One[PostShown], Many[PostShown]
CommentAnswer, CommentsAnswer = One[CommentShown], Many[CommentShown]
