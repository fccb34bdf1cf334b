"""posts: articles and comments, open to all readers.

`/api/articles` is the same resource under another name. Lists are `{"data": […], "page": {"limit", "nextCursor"}}`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Response, request
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.kit import Kit, Problem, create_service, current, kit, require_scope, stale_if_error
from services.kit.db import idempotency
from services.kit.db.idempotency import Answer, answer_once
from services.kit.text import now_us
from services.kit.web.paging import Page, page_of
from services.kit.web.resources import NOTHING, body_of, conditional, found, read, require_match
from services.posts import store, told
from services.posts.answers import (
    CommentAnswer,
    CommentsAnswer,
    LikesAnswer,
    PostAnswer,
    PostsAnswer,
    Tags,
)
from services.posts.authors import PostsWithAuthors, WithAuthors, name_authors
from services.posts.domain import (
    Comment,
    CommentChange,
    NewComment,
    NewPost,
    Post,
    PostChange,
    TagQuery,
    may_change,
)
from services.users.events import UserDeleted

PATHS = ["/api/posts", "/api/articles"]
# Readers may keep it, but ask each time whether it still holds: an edit is seen at once.
READ = "public, no-cache"
TAGS_READ = "public, max-age=10"
OWN = "private, no-store"
# What a deleted author wrote is taken out so many at a time, and looked for until the last token of the account has ended.
GONE_BATCH = 50
GONE_US = 3600 * 1_000_000

app = create_service(
    "posts",
    paths=PATHS,
    auth="read-public",
    balance="source",
    domain="business",
    edge_cache=True,
    models_metadata=store.Base.metadata,
    calls=["users"],
    events=True,
)
own: Kit = app.extensions["kit"]


@own.events.consumes(UserDeleted)
def forget_author(event: UserDeleted, session: Session) -> None:
    store.forget_author(session, event.userId, now_us())


def remove_what_the_gone_wrote() -> None:
    """Delete some of it. A job: an author may have written more than fits into a transaction."""
    with own.db.session() as session:
        author = store.gone_author(session)
        if author is None:
            store.forget_gone_authors(session, now_us() - GONE_US)
            return
        posts, comments = store.written_by(session, author, GONE_BATCH)
        for post in posts:
            remove_post(session, post)
        for comment in comments:
            remove_comment(session, comment)


own.jobs.every(1.0, remove_what_the_gone_wrote)
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


def published(session: Session, post_id: str) -> Post:
    """The post, as every reader may have it. Raises Problem 404."""
    post = store.find_post(session, post_id)
    return found(post if post is not None and post.published_us is not None else None, "post")


def load(post_id: str) -> Post:
    """The same, in a session of its own."""
    with kit().db.session(read_only=True) as session:
        return published(session, post_id)


def load_comment(path: CommentPath) -> Comment:
    """The comment of this post. Raises Problem 404."""
    with kit().db.session(read_only=True) as session:
        return found(
            store.find_comment(session, published(session, path.post_id), path.comment_id), "comment"
        )


def is_owner(item: Post | Comment) -> bool:
    caller = current()
    return may_change(caller.subject or "", caller.scopes, item.author_id)


def owned(item: Post | Comment) -> None:
    """Raises Problem 403 unless the caller may change it."""
    if not is_owner(item):
        raise Problem(403, detail="Only its author or an administrator may do this.")


def hold(session: Session, post_id: str) -> Post:
    """The post, for a change by this caller, which has seen it as it is. Raises Problem 403, 404, 412."""
    post = found(store.find_post(session, post_id, hold=True), "post")
    if post.published_us is None and not is_owner(post):
        found(None, "post")  # that there is a draft is its author's affair
    owned(post)
    require_match(body_of(post))
    return post


def location(*parts: str) -> str:
    """The address of something new, under the name that the client used."""
    name = PATHS[1] if request.path.startswith(PATHS[1]) else PATHS[0]
    return "/".join((name, *parts))


def remove_post(session: Session, post: Post) -> None:
    comments = store.delete_post(session, post)
    if post.published_us is not None:
        own.events.publish(told.deleted(post, comments, now_us()))


def remove_comment(session: Session, comment: Comment) -> None:
    replies = store.delete_comment(session, comment)
    if replies is not None:
        own.events.publish(told.comment_deleted(comment, replies, now_us()))


@route("get", answers=read(PostsWithAuthors))
@stale_if_error(scope="public")
def list_posts(query: WithAuthors) -> Response:
    """Newest first. `tag`, `author` and `q` (all its words, in title or content) are joined by *and*."""
    before = query.after(int, int)
    with kit().db.session(read_only=True) as session:
        posts = store.list_posts(
            session, tag=query.tag, author=query.author, words=query.q, before=before, limit=query.limit + 1
        )
    page = page_of(posts, query, lambda post: (post.published_us or 0, post.number))
    return conditional(name_authors(page, query), READ)


@route("post", answers={201: PostAnswer})
@require_scope("user", "admin")
def create_post(body: NewPost) -> Any:
    """Publish, or keep as a draft. The author is the caller; an Idempotency-Key makes repeating it safe for a day."""
    author_id = current().subject or ""
    with kit().db.session() as session:

        def work() -> Answer:
            post = store.create_post(session, author_id, body, now_us())
            if not body.draft:
                own.events.publish(told.published(post))
            return Answer(201, body_of(post), location(post.id))

        return answer_once(session, store.KeyRow, "post", body, work)


@route("get", "/drafts", answers={200: PostsAnswer})
@require_scope("user", "admin")
def list_drafts(query: Page) -> Any:
    """The caller's own, the newest first."""
    owner = current().subject or ""
    before = query.after(int, owners=(owner,))
    with kit().db.session(read_only=True) as session:
        posts = store.list_drafts(session, owner, before[0] if before else None, query.limit + 1)
    body = page_of(posts, query, lambda post: (post.number,), (owner,))
    return body, 200, {"Cache-Control": OWN}


@route("post", "/<id:post_id>/publish", answers={200: PostAnswer})
@require_scope("user", "admin")
def publish_post(path: PostPath) -> Response:
    """Let everybody read a draft. A post that is published stays as it is."""
    with kit().db.session() as session:
        post = hold(session, path.post_id)
        if post.published_us is None:
            post = store.publish_post(session, post, now_us())
            own.events.publish(told.published(post))
    return conditional(body_of(post), "no-store")


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
        remove_post(session, post)
    for name in PATHS:
        kit().stale.forget(f"{name}/{post.id}")
    return "", 204


@route("get", "/<id:post_id>/likes", answers={200: LikesAnswer})
def get_likes(path: PostPath) -> Any:
    """How many like it."""
    with kit().db.session(read_only=True) as session:
        count, liked = store.likes(session, published(session, path.post_id), current().subject)
    return {"data": {"count": count, "liked": liked}}, 200, {"Cache-Control": OWN}


@route("put", "/<id:post_id>/like", answers=NOTHING)
@require_scope("user", "admin")
def like(path: PostPath) -> tuple[str, int]:
    """Like it, once however often this comes."""
    try:
        with kit().db.session() as session:
            store.like(session, published(session, path.post_id), current().subject or "")
    except IntegrityError:
        raise Problem(404, detail="There is no such post.") from None
    return "", 204


@route("delete", "/<id:post_id>/like", answers=NOTHING)
@require_scope("user", "admin")
def unlike(path: PostPath) -> tuple[str, int]:
    with kit().db.session() as session:
        store.unlike(session, published(session, path.post_id), current().subject or "")
    return "", 204


@route("get", "/<id:post_id>/comments", answers=read(CommentsAnswer))
def list_comments(path: PostPath, query: Page) -> Response:
    """Oldest first, answers among them."""
    after, owners = query.after(int, owners=(path.post_id,)), (path.post_id,)
    with kit().db.session(read_only=True) as session:
        post = published(session, path.post_id)
        comments = store.list_comments(
            session, post, after=after[0] if after else None, limit=query.limit + 1
        )
    return conditional(page_of(comments, query, lambda comment: (comment.number,), owners), READ)


@route("post", "/<id:post_id>/comments", answers={201: CommentAnswer})
@require_scope("user", "admin")
def create_comment(path: PostPath, body: NewComment) -> Any:
    """Comment, or with `parentId` answer a comment. An Idempotency-Key makes repeating it safe for a day."""
    post = load(path.post_id)
    author_id = current().subject or ""
    try:
        with kit().db.session() as session:

            def work() -> Answer:
                parent = answered(session, post, body.parentId)
                comment = store.create_comment(
                    session, post, author_id, body.content, now_us(), body.parentId
                )
                own.events.publish(told.commented(post, comment, parent))
                return Answer(201, body_of(comment), location(post.id, "comments", comment.id))

            return answer_once(session, store.KeyRow, f"comment:{post.id}", body, work)
    except IntegrityError:
        raise Problem(404, detail="There is no such post, or no such comment any more.") from None


def answered(session: Session, post: Post, parent_id: str | None) -> Comment | None:
    """The comment that a new one answers. Raises Problem 422."""
    if parent_id is None:
        return None
    parent = store.find_comment(session, post, parent_id)
    if parent is None:
        raise Problem(422, detail="The post has no comment with this parentId.")
    if parent.parent_id is not None:
        raise Problem(
            422, detail="An answer cannot be answered: give the comment that it answers as parentId."
        )
    return parent


@route("get", "/<id:post_id>/comments/<id:comment_id>", answers=read(CommentAnswer))
def get_comment(path: CommentPath) -> Response:
    return conditional(body_of(load_comment(path)), READ)


@route("patch", "/<id:post_id>/comments/<id:comment_id>", answers={200: CommentAnswer})
@require_scope("user", "admin")
def change_comment(path: CommentPath, body: CommentChange) -> Response:
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
        remove_comment(session, comment)
    return "", 204
