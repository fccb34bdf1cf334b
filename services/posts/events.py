"""What posts tells other services. Mentions are user names (`@ada` in the text), each once."""

from __future__ import annotations

from datetime import datetime

from services.kit.events.event import Event


class PostPublished(Event, type="post.published.v1", producer="posts", subject="postId"):
    """A post can be read by everybody from now on."""

    postId: str  # noqa: N815 - the wire's spelling
    authorId: str  # noqa: N815
    title: str
    tags: tuple[str, ...] = ()
    mentions: tuple[str, ...] = ()
    publishedAt: datetime  # noqa: N815


class PostDeleted(Event, type="post.deleted.v1", producer="posts", subject="postId"):
    """A published post is gone, with its `comments`: how many there were, for they are not told apart."""

    postId: str  # noqa: N815
    authorId: str  # noqa: N815
    tags: tuple[str, ...] = ()
    comments: int = 0
    deletedAt: datetime  # noqa: N815


class CommentCreated(Event, type="comment.created.v1", producer="posts", subject="postId"):
    """A comment on a post; `parentAuthorId` is whose comment it answers."""

    commentId: str  # noqa: N815
    postId: str  # noqa: N815
    postAuthorId: str  # noqa: N815
    authorId: str  # noqa: N815
    parentAuthorId: str | None = None  # noqa: N815
    content: str
    mentions: tuple[str, ...] = ()
    createdAt: datetime  # noqa: N815


class CommentDeleted(Event, type="comment.deleted.v1", producer="posts", subject="postId"):
    """A comment is gone, with its `replies`: how many there were, for they are not told apart."""

    commentId: str  # noqa: N815
    postId: str  # noqa: N815
    authorId: str  # noqa: N815
    replies: int = 0
    deletedAt: datetime  # noqa: N815
