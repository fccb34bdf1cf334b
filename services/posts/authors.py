"""The names of a page's authors (`?include=authors`), asked of users: once a page, by gRPC."""

from __future__ import annotations

from typing import Any, Literal

import grpc
import structlog
from pydantic import BaseModel

from discovery.errors import CallError
from services.kit import kit
from services.kit.web.resources import Many
from services.posts.answers import PostShown
from services.posts.domain import PostQuery
from services.users.proto.users_pb2 import BatchGetUsersRequest
from services.users.proto.users_pb2_grpc import UsersStub

log = structlog.get_logger(__name__)

# A page without names is better than a late one.
ASK_S = 1.0


class WithAuthors(PostQuery):
    """With `include=authors` the answer names its authors."""

    include: Literal["authors"] | None = None


class Author(BaseModel):
    username: str


class PostsWithAuthors(Many[PostShown]):
    """`authors` is there if it was asked for: by id, without those that are gone, or null while users is away."""

    authors: dict[str, Author] | None = None


def name_authors(page: dict[str, Any], query: WithAuthors) -> dict[str, Any]:
    """The body of a page of posts, with its authors if they were asked for."""
    if query.include is None:
        return page
    ids = list(dict.fromkeys(post["authorId"] for post in page["data"]))
    return {**page, "authors": _known(ids) if ids else {}}


def _known(ids: list[str]) -> dict[str, dict[str, str]] | None:
    users = kit().grpc("users", UsersStub)
    try:
        answer = users.BatchGetUsers(BatchGetUsersRequest(ids=ids), timeout=ASK_S)
    except (CallError, grpc.RpcError) as error:
        log.warning("authors not named", error=type(error).__name__, reason=str(error)[:200])
        return None
    return {user.id: {"username": user.username} for user in answer.users}
