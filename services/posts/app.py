"""posts: articles and comments, open to all readers.

`/api/articles` is the same resource under another name. Lists are `{"data": […], "page": {"limit", "nextCursor"}}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from flask import Response, request
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.kit import Problem, create_service, current, kit, require_scope, stale_if_error
from services.kit.db import idempotency
from services.kit.db.idempotency import Answer, answer_once
from services.kit.db.outbox import Outbox, Owed
from services.kit.text import now_us
from services.kit.web.paging import Page, page_of
from services.kit.web.resources import NOTHING, body_of, conditional, found, read, require_match
from services.posts import store
from services.posts.answers import CommentAnswer, CommentsAnswer, PostAnswer, PostsAnswer, Tags
from services.posts.domain import (
    Comment,
    NewComment,
    NewPost,
    Post,
    PostChange,
    PostQuery,
    TagQuery,
    may_change,
)

PATHS = ["/api/posts", "/api/articles"]
# Readers may keep it, but ask each time whether it still holds: an edit is seen at once.
READ = "public, no-cache"
TAGS_READ = "public, max-age=10"
# An author that users does not know may only be a moment younger than the first post; after some minutes that is not so.
MAX_REFUSALS = 10

app = create_service(
    "posts",
    paths=PATHS,
    auth="read-public",
    balance="source",
    domain="business",
    edge_cache=True,
    models_metadata=store.Base.metadata,
    calls=["users"],
)
own = app.extensions["kit"]


def send_count(owed: Owed, deadline_s: float) -> int:
    """Let users know how many posts an author has."""
    path = f"/internal/users/{quote(owed.key, safe='')}/post-count"
    return int(own.client.request("POST", "users", path, json=owed.payload, deadline_s=deadline_s).status)


counts = Outbox(own.db, store.OutboxRow, send_count, refusals=MAX_REFUSALS)
own.jobs.every(1.0, counts.deliver)
own.jobs.every(300.0, lambda: idempotency.forget_old(own.db, store.KeyRow))


class PostPath(BaseModel):
    post_id: str


class CommentPath(PostPath):
    comment_id: str


def route(
    method: str, suffix: str = "", *, answers: dict[Any, Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Serve a view under both names of the resource; the OpenAPI document shows the first."""

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        for name in PATHS:
            declare = getattr(app, method)
            declare(
                name + suffix, endpoint=f"{name}:{view.__name__}", doc_ui=name == PATHS[0], responses=answers
            )(view)
        return view

    return decorate


def load(post_id: str) -> Post:
    """The post. Raises Problem 404."""
    with kit().db.session(read_only=True) as session:
        return found(store.find_post(session, post_id), "post")


def load_comment(path: CommentPath) -> Comment:
    """The comment of this post. Raises Problem 404."""
    with kit().db.session(read_only=True) as session:
        post = found(store.find_post(session, path.post_id), "post")
        return found(store.find_comment(session, post, path.comment_id), "comment")


def owned(item: Post | Comment) -> None:
    """Raises Problem 403 unless the caller may change it."""
    caller = current()
    if not may_change(caller.subject or "", caller.scopes, item.author_id):
        raise Problem(403, detail="Only its author or an administrator may do this.")


def hold(session: Session, post_id: str) -> Post:
    """The post, for a change by this caller, which has seen it as it is. Raises Problem 403, 404, 412."""
    post = found(store.find_post(session, post_id, hold=True), "post")
    owned(post)
    require_match(body_of(post))
    return post


def location(*parts: str) -> str:
    """The address of something new, under the name that the client used."""
    name = PATHS[1] if request.path.startswith(PATHS[1]) else PATHS[0]
    return "/".join((name, *parts))


def count(session: Session, author_id: str, difference: int) -> None:
    """Count the author's posts on or back, and owe users the result."""
    counts.owe(session, author_id, store.count_posts(session, author_id, difference, now_us()))


def tell_count(author_id: str) -> None:
    counts.at_once(author_id, current().remaining_s())


@route("get", answers=read(PostsAnswer))
@stale_if_error(scope="public")
def list_posts(query: PostQuery) -> Response:
    """Newest first. `tag`, `author` and `q` (all its words, in title or content) are joined by *and*."""
    before = query.after(int)
    with kit().db.session(read_only=True) as session:
        posts = store.list_posts(
            session,
            tag=query.tag,
            author=query.author,
            words=query.q,
            before=before[0] if before else None,
            limit=query.limit + 1,
        )
    return conditional(page_of(posts, query, lambda post: (post.number,)), READ)


@route("post", answers={201: PostAnswer})
@require_scope("user", "admin")
def create_post(body: NewPost) -> Any:
    """Publish. The author is the caller; an Idempotency-Key makes repeating it safe for a day."""
    author_id = current().subject or ""
    with kit().db.session() as session:

        def work() -> Answer:
            post = store.create_post(session, author_id, body, now_us())
            count(session, author_id, +1)
            return Answer(201, body_of(post), location(post.id))

        answer = answer_once(session, store.KeyRow, "post", body, work)
    tell_count(author_id)
    return answer


@route("get", "/tags", answers=read(Tags))
def list_tags(query: TagQuery) -> Response:
    """The tags in use with the number of posts each has, the most used first."""
    with kit().db.session(read_only=True) as session:
        tags = store.list_tags(session, query.limit)
    return conditional({"data": [{"tag": tag, "count": number} for tag, number in tags]}, TAGS_READ)


@route("get", "/<id:post_id>", answers=read(PostAnswer))
@stale_if_error(scope="public")
def get_post(path: PostPath) -> Response:
    return conditional(body_of(load(path.post_id)), READ)


@route("patch", "/<id:post_id>", answers={200: PostAnswer})
@require_scope("user", "admin")
def change_post(path: PostPath, body: PostChange) -> Response:
    """Change title, content or tags. With `If-Match`, only the state that was read."""
    with kit().db.session() as session:
        post = store.change_post(session, hold(session, path.post_id), body, now_us())
    return conditional(body_of(post), "no-store")


@route("delete", "/<id:post_id>", answers=NOTHING)
@require_scope("user", "admin")
def delete_post(path: PostPath) -> tuple[str, int]:
    """Delete the post with its comments."""
    with kit().db.session() as session:
        post = hold(session, path.post_id)
        store.delete_post(session, post)
        count(session, post.author_id, -1)
    for name in PATHS:
        kit().stale.forget(f"{name}/{post.id}")
    tell_count(post.author_id)
    return "", 204


@route("get", "/<id:post_id>/comments", answers=read(CommentsAnswer))
def list_comments(path: PostPath, query: Page) -> Response:
    """Oldest first."""
    after, owners = query.after(int, owners=(path.post_id,)), (path.post_id,)
    with kit().db.session(read_only=True) as session:
        post = found(store.find_post(session, path.post_id), "post")
        comments = store.list_comments(
            session, post, after=after[0] if after else None, limit=query.limit + 1
        )
    return conditional(page_of(comments, query, lambda comment: (comment.number,), owners), READ)


@route("post", "/<id:post_id>/comments", answers={201: CommentAnswer})
@require_scope("user", "admin")
def create_comment(path: PostPath, body: NewComment) -> Any:
    post = load(path.post_id)
    author_id = current().subject or ""
    try:
        with kit().db.session() as session:

            def work() -> Answer:
                comment = store.create_comment(session, post, author_id, body.content, now_us())
                return Answer(201, body_of(comment), location(post.id, "comments", comment.id))

            return answer_once(session, store.KeyRow, f"comment:{post.id}", body, work)
    except IntegrityError:
        raise Problem(404, detail="There is no such post.") from None


@route("get", "/<id:post_id>/comments/<id:comment_id>", answers=read(CommentAnswer))
def get_comment(path: CommentPath) -> Response:
    return conditional(body_of(load_comment(path)), READ)


@route("patch", "/<id:post_id>/comments/<id:comment_id>", answers={200: CommentAnswer})
@require_scope("user", "admin")
def change_comment(path: CommentPath, body: NewComment) -> Response:
    comment = load_comment(path)
    owned(comment)
    with kit().db.session() as session:
        store.change_comment(session, comment, body.content, now_us())
    return conditional(body_of(load_comment(path)), "no-store")


@route("delete", "/<id:post_id>/comments/<id:comment_id>", answers=NOTHING)
@require_scope("user", "admin")
def delete_comment(path: CommentPath) -> tuple[str, int]:
    comment = load_comment(path)
    owned(comment)
    with kit().db.session() as session:
        store.delete_comment(session, comment)
    return "", 204
