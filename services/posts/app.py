"""posts: what people write, to be read by everyone.

`/api/articles` is the same resource under another name. Lists are `{"data": […], "page": {"limit", "nextCursor"}}`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flask import Response, request
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError

from services.kit import Problem, create_service, current, kit, require_scope, snapshot
from services.kit.web.conditional import conditional, require_match
from services.kit.web.paging import BadCursor, Page, decode_cursor, encode_cursor, page_json, scope_of
from services.kit.web.schemas import NOTHING, read
from services.posts import idempotency, store
from services.posts.answers import CommentAnswer, CommentsAnswer, PostAnswer, PostsAnswer, Tags
from services.posts.delivery import CountDelivery, Flusher
from services.posts.domain import (
    Answer,
    Comment,
    NewComment,
    NewPost,
    Post,
    PostChange,
    PostQuery,
    TagQuery,
    check_idempotency_key,
    fingerprint,
    is_id,
    may_change,
)
from services.posts.tables import Base

PATHS = ["/api/posts", "/api/articles"]
# Not any text: `/tags` is no post, and takes none of the methods of one.
POST = "<string(length=32):post_id>"
# Readers may keep it, but ask each time whether it still holds: an edit is seen at once.
READ = "public, no-cache"
TAGS_READ = "public, max-age=10"
# How old the answer may be that a gateway gives while no instance is left.
LAST_GOOD_S = 3600.0
# A change that loses the race with others is tried again on what they left.
TRIES = 4

app = create_service(
    "posts",
    paths=PATHS,
    auth="read-public",
    balance="source",
    domain="business",
    edge_cache=True,
    models_metadata=Base.metadata,
)
own = app.extensions["kit"]
delivery = CountDelivery(own.db, lambda: own.client)
own.on_start(Flusher(delivery).start)


class PostPath(BaseModel):
    post_id: str


class CommentPath(PostPath):
    comment_id: str


def route(
    method: str, suffix: str = "", *, answers: dict[int, Any]
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


def now_us() -> int:
    return int(time.time() * 1_000_000)


def found(post_id: str) -> Post:
    """The post. Raises Problem 404."""
    if is_id(post_id):
        with kit().db.session(read_only=True) as session:
            post = store.find_post(session, post_id)
        if post is not None:
            return post
    raise Problem(404, detail="There is no such post.")


def found_comment(post: Post, comment_id: str) -> Comment:
    """The comment of this post. Raises Problem 404."""
    if is_id(comment_id):
        with kit().db.session(read_only=True) as session:
            comment = store.find_comment(session, post, comment_id)
        if comment is not None:
            return comment
    raise Problem(404, detail="There is no such comment.")


def owned(item: Post | Comment) -> None:
    """Raises Problem 403 unless the caller may change it."""
    caller = current()
    if not may_change(caller.subject or "", caller.scopes, item.author_id):
        raise Problem(403, detail="Only its author or an administrator may do this.")


def body_of(item: Post | Comment) -> dict[str, Any]:
    return {"data": item.to_json()}


def location(*parts: str) -> str:
    """The address of something new, under the name that the client used."""
    name = PATHS[1] if request.path.startswith(PATHS[1]) else PATHS[0]
    return "/".join((name, *parts))


def cursor_number(page: Page, scope: str) -> int | None:
    """Where the page starts. Raises Problem 400."""
    if page.cursor is None:
        return None
    try:
        (number,) = decode_cursor(page.cursor, scope, (int,))
    except BadCursor as error:
        raise Problem(400, "Bad cursor", str(error)) from None
    return int(number)


def one_page(items: list[Any], page: Page, scope: str) -> dict[str, Any]:
    """The body of a page; `items` holds one more than the limit when there is a next one."""
    shown = items[: page.limit]
    following = encode_cursor(scope, (shown[-1].number,)) if len(items) > page.limit else None
    return page_json([item.to_json() for item in shown], following, page.limit)


def answer_once(operation: str, body: BaseModel, work: Callable[[Any], Answer]) -> tuple[Answer, bool]:
    """Do the work in one transaction; under an Idempotency-Key only the first time. Raises Problem 400, 422."""
    key = request.headers.get("Idempotency-Key")
    with kit().db.session() as session:
        if key is None:
            return work(session), False
        try:
            check_idempotency_key(key)
            return idempotency.once(
                session,
                current().subject or "",
                key,
                fingerprint(operation, body),
                now_us(),
                lambda: work(session),
            )
        except ValueError as error:
            raise Problem(400, "Bad Idempotency-Key", str(error)) from None
        except idempotency.KeyReused:
            raise Problem(
                422, "Idempotency-Key reused", "This key was first used for another request."
            ) from None


def created(answer: Answer, repeated: bool) -> tuple[dict[str, Any], int, dict[str, str]]:
    headers = {"Location": answer.location, "Cache-Control": "no-store"}
    if repeated:
        headers["Idempotency-Replayed"] = "true"
    return answer.body, answer.status, headers


def tell_count(author_id: str) -> None:
    delivery.at_once(author_id, current().remaining_s())


@route("get", answers=read(PostsAnswer))
@snapshot(stale_s=LAST_GOOD_S, scope="public")
def list_posts(query: PostQuery) -> Response:
    """Newest first. `tag`, `author` and `q` (all its words, in title or content) are joined by *and*."""
    scope = scope_of("posts", query.tag, query.author, query.q)
    with kit().db.session(read_only=True) as session:
        posts = store.list_posts(
            session,
            tag=query.tag,
            author=query.author,
            words=query.q,
            before=cursor_number(query, scope),
            limit=query.limit + 1,
        )
    return conditional(one_page(posts, query, scope), READ)


@route("post", answers={201: PostAnswer})
@require_scope("user", "admin")
def create_post(body: NewPost) -> Any:
    """Publish. The author is the caller; an Idempotency-Key makes repeating it safe for a day."""
    author_id = current().subject or ""

    def work(session: Any) -> Answer:
        post = store.create_post(session, author_id, body, now_us())
        return Answer(201, body_of(post), location(post.id))

    answer, repeated = answer_once("post", body, work)
    tell_count(author_id)
    return created(answer, repeated)


@route("get", "/tags", answers=read(Tags))
def list_tags(query: TagQuery) -> Response:
    """The tags in use with the number of posts each has, the most used first."""
    with kit().db.session(read_only=True) as session:
        tags = store.list_tags(session, query.limit)
    return conditional({"data": [{"tag": tag, "count": count} for tag, count in tags]}, TAGS_READ)


@route("get", f"/{POST}", answers=read(PostAnswer))
@snapshot(stale_s=LAST_GOOD_S, scope="public")
def get_post(path: PostPath) -> Response:
    return conditional(body_of(found(path.post_id)), READ)


@route("patch", f"/{POST}", answers={200: PostAnswer})
@require_scope("user", "admin")
def change_post(path: PostPath, body: PostChange) -> Response:
    """Change title, content or tags. With `If-Match`, only the state that was read."""
    for _ in range(TRIES):
        post = found(path.post_id)
        owned(post)
        require_match(body_of(post))
        with kit().db.session() as session:
            changed = store.change_post(session, post, body, now_us())
        if changed is not None:
            return conditional(body_of(changed), "no-store")
    raise Problem(409, detail="Others are changing this at the same moment: try again.")


@route("delete", f"/{POST}", answers=NOTHING)
@require_scope("user", "admin")
def delete_post(path: PostPath) -> tuple[str, int]:
    """Delete the post with its comments."""
    post = found(path.post_id)
    owned(post)
    require_match(body_of(post))
    with kit().db.session() as session:
        gone = store.delete_post(session, post, now_us())
    if not gone:
        raise Problem(404, detail="There is no such post.")
    for name in PATHS:
        kit().snapshots.forget(f"{name}/{post.id}")
    tell_count(post.author_id)
    return "", 204


@route("get", f"/{POST}/comments", answers=read(CommentsAnswer))
def list_comments(path: PostPath, query: Page) -> Response:
    """Oldest first."""
    post = found(path.post_id)
    scope = scope_of("comments", post.id)
    with kit().db.session(read_only=True) as session:
        comments = store.list_comments(
            session, post, after=cursor_number(query, scope), limit=query.limit + 1
        )
    return conditional(one_page(comments, query, scope), READ)


@route("post", f"/{POST}/comments", answers={201: CommentAnswer})
@require_scope("user", "admin")
def create_comment(path: PostPath, body: NewComment) -> Any:
    post = found(path.post_id)

    def work(session: Any) -> Answer:
        comment = store.create_comment(session, post, current().subject or "", body.content, now_us())
        return Answer(201, body_of(comment), location(post.id, "comments", comment.id))

    try:
        return created(*answer_once(f"comment:{post.id}", body, work))
    except IntegrityError:
        raise Problem(404, detail="There is no such post.") from None


@route("get", f"/{POST}/comments/<comment_id>", answers=read(CommentAnswer))
def get_comment(path: CommentPath) -> Response:
    return conditional(body_of(found_comment(found(path.post_id), path.comment_id)), READ)


@route("patch", f"/{POST}/comments/<comment_id>", answers={200: CommentAnswer})
@require_scope("user", "admin")
def change_comment(path: CommentPath, body: NewComment) -> Response:
    post = found(path.post_id)
    comment = found_comment(post, path.comment_id)
    owned(comment)
    with kit().db.session() as session:
        changed = store.change_comment(session, post, comment, body.content, now_us())
    if changed is None:
        raise Problem(404, detail="There is no such comment.")
    return conditional(body_of(changed), "no-store")


@route("delete", f"/{POST}/comments/<comment_id>", answers=NOTHING)
@require_scope("user", "admin")
def delete_comment(path: CommentPath) -> tuple[str, int]:
    comment = found_comment(found(path.post_id), path.comment_id)
    owned(comment)
    with kit().db.session() as session:
        store.delete_comment(session, comment)
    return "", 204
